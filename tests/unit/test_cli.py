"""The command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import yaml

from assay_operator.__main__ import main
from assay_operator.cluster.audit import CHILDREN, OWNERS
from assay_operator.runtime import Options

DIGEST = f"sha256:{'a' * 64}"
SERVICE = """
apiVersion: assay.dev/v1alpha1
kind: InferenceService
metadata: {name: solver, namespace: team}
spec:
  model: {source: "pvc://models/solver"}
  engine: {accelerator: cpu}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: bystander}
"""

LOOP = """
---
apiVersion: assay.dev/v1alpha1
kind: VerifiedRLJob
metadata: {name: solver-rl, namespace: team}
spec:
  model: {source: "pvc://models/solver"}
  data: {source: "reasoning-gym://number_sorting?seed=7"}
  rollout: {engine: {accelerator: cpu}}
  trainer: {accelerator: cpu, steps: 40}
  checkpoint: {storage: {size: 1Gi}}
---
apiVersion: assay.dev/v1alpha1
kind: Checkpoint
metadata: {name: mine, namespace: team}
spec:
  source: "pvc://models/mine"
  evaluation: {suite: {configMap: heldout}, minScore: 0.5, engine: {accelerator: cpu}}
"""


PINNED = SERVICE.replace("pvc://models/solver", "checkpoint://mine")
FOLLOWING = SERVICE.replace('solver"}', 'solver", follow: {job: solver-rl}}')
UNWEIGHED = LOOP[: LOOP.index("  evaluation: {suite")] + f"  digest: {DIGEST}\n"
MADE = f"""
---
apiVersion: assay.dev/v1alpha1
kind: Checkpoint
metadata: {{name: solver-rl-1-20, namespace: team}}
spec:
  source: "pvc://solver-rl-checkpoints/solver-rl/checkpoints/step-000020"
  digest: {DIGEST}
  job: {{name: solver-rl, uid: 6f1d2b7c-8a54-4f0e-9c3d-2b1a0e9f8d7c, step: 20, version: "1.20"}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "solver.yaml"
    path.write_text(SERVICE)
    return path


class TestCrds:
    def test_they_are_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["crds"]) == 0
        crds = list(yaml.safe_load_all(capsys.readouterr().out))
        assert [crd["spec"]["names"]["kind"] for crd in crds] == list(OWNERS)

    def test_what_was_written_passes_the_check(self, tmp_path: Path) -> None:
        assert main(["crds", "--out", str(tmp_path / "crds")]) == 0
        assert main(["crds", "--check", str(tmp_path / "crds")]) == 0

    def test_the_check_names_what_differs(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["crds", "--out", str(tmp_path)])
        written = tmp_path / "assay.dev_inferenceservices.yaml"
        written.write_text(written.read_text() + "# edited\n")
        assert main(["crds", "--check", str(tmp_path)]) == 1
        assert written.name in capsys.readouterr().err


class TestPlan:
    def test_it_prints_what_would_be_applied(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["plan", str(file)]) == 0
        objects = list(yaml.safe_load_all(capsys.readouterr().out))
        kinds = {item["kind"] for item in objects}
        assert {"Deployment", "Service", "ConfigMap"} <= kinds
        assert all("solver" in item["metadata"]["name"] for item in objects)

    def test_an_error_names_file_object_and_field(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text(SERVICE.replace("accelerator: cpu", "accelerator: abacus"))
        assert main(["plan", str(file)]) == 1
        assert f"{file}: solver: spec.engine.accelerator: " in capsys.readouterr().err

    def test_an_unknown_key_is_an_error(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text(SERVICE.replace("engine:", "engin:"))
        assert main(["plan", str(file)]) == 1
        assert "spec.engin: " in capsys.readouterr().err

    def test_a_file_without_a_service_is_an_error(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text("kind: ConfigMap\n")
        assert main(["plan", str(file)]) == 1
        assert "no InferenceService or VerifiedRLJob" in capsys.readouterr().err

    def test_every_kind_is_planned(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file.write_text(SERVICE + LOOP)
        assert main(["plan", str(file)]) == 0
        owners = {
            item["metadata"]["labels"]["assay.dev/owner"]
            for item in yaml.safe_load_all(capsys.readouterr().out)
        }
        assert owners == {"inferenceservice.solver", "verifiedrljob.solver-rl", "checkpoint.mine"}

    def test_a_service_that_pins_a_checkpoint_of_the_file_is_planned_as_when_that_has_passed(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text(PINNED + LOOP.replace("evaluation:", f"digest: {DIGEST}\n  evaluation:"))
        assert main(["plan", str(file)]) == 0
        objects = list(yaml.safe_load_all(capsys.readouterr().out))
        pointer = next(each for each in objects if each["metadata"]["name"] == "solver-pointer")
        document = json.loads(pointer["data"]["pointer.json"])
        assert document == {"path": "/checkpoints/mine", "version": DIGEST}

    @pytest.mark.parametrize(
        ("others", "why"),
        [
            ("", "Checkpoint mine does not exist in this namespace: "),
            (LOOP.replace("namespace: team", "namespace: other"), "Checkpoint mine does not exist"),
            (LOOP, "Checkpoint mine has no digest yet: "),
            (UNWEIGHED, "Checkpoint mine is not verified: Its spec has no evaluation"),
        ],
        ids=["absent", "elsewhere", "without a digest", "never weighed"],
    )
    def test_what_is_missing_for_a_pin_is_said_in_a_line(
        self, file: Path, capsys: pytest.CaptureFixture[str], others: str, why: str
    ) -> None:
        file.write_text(PINNED + others)
        assert main(["plan", str(file)]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        (line,) = told.err.splitlines()
        assert line.startswith(f"assay-operator: {file}: solver: {why}")

    def test_a_service_that_follows_a_job_of_the_file_mounts_its_checkpoints(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text(FOLLOWING + LOOP + MADE)
        assert main(["plan", str(file)]) == 0
        objects = list(yaml.safe_load_all(capsys.readouterr().out))
        engine = next(
            each
            for each in objects
            if each["kind"] == "Deployment" and each["metadata"]["name"] == "solver-engine"
        )
        volumes = engine["spec"]["template"]["spec"]["volumes"]
        claims = {each.get("persistentVolumeClaim", {}).get("claimName") for each in volumes}
        assert {"models", "solver-rl-checkpoints"} <= claims

    def test_an_engine_that_does_not_exist_is_told_for_each_object_that_asks_for_it(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wrong = "{accelerator: cpu, profile: deepseek-v4-pro}"
        file.write_text((SERVICE + LOOP).replace("{accelerator: cpu}", wrong))
        assert main(["plan", str(file)]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        names = [line.removeprefix("assay-operator: ") for line in told.err.splitlines()]
        for line, name in zip(names, ("solver", "solver-rl", "mine"), strict=True):
            assert line.startswith(f"{file}: {name}: ") and "deepseek-v4-pro" in line

    def test_an_object_without_a_name_is_an_error(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text(SERVICE.replace("name: solver, ", ""))
        assert main(["plan", str(file)]) == 1
        assert f"{file}: InferenceService: metadata.name is missing" in capsys.readouterr().err

    def test_a_kind_that_has_no_children_is_checked_all_the_same(
        self, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        grant = {"apiVersion": "assay.dev/v1alpha1", "kind": "CheckpointGrant"}
        grant |= {"metadata": {"name": "g"}, "spec": {"from": [{"namespace": "team-b"}]}}
        file.write_text(yaml.safe_dump(grant))
        assert main(["plan", str(file)]) == 0
        assert capsys.readouterr().out == ""
        file.write_text(yaml.safe_dump(grant | {"spec": {"from": []}}))
        assert main(["plan", str(file)]) == 1
        assert "g: spec.from: " in capsys.readouterr().err

    def test_a_file_that_is_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", "nowhere.yaml"]) == 1
        assert "nowhere.yaml" in capsys.readouterr().err

    def test_the_administrators_defaults_are_used(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "config.yaml"
        config.write_text("engine: {images: {cpu: 'registry.example/engine:1'}}")
        assert main(["plan", str(file), "--config", str(config)]) == 0
        assert "registry.example/engine:1" in capsys.readouterr().out


class TestHelp:
    @pytest.mark.parametrize("command", ["run", "crds", "plan", "version"])
    def test_every_command_has_it(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert command in capsys.readouterr().out

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["version"]) == 0
        assert capsys.readouterr().out.startswith("assay-operator ")

    def test_no_command_is_an_error(self) -> None:
        with pytest.raises(SystemExit) as ended:
            main([])
        assert ended.value.code == 2


class TestRun:
    def test_a_kubeconfig_that_is_not_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["run", "--kubeconfig", str(tmp_path / "none")]) == 1
        assert "none" in capsys.readouterr().err

    def test_the_lease_lives_where_the_operator_watches(self) -> None:
        assert Options().lease_place() == "default"
        assert Options(namespaces=("a", "b")).lease_place() == "a"
        assert Options(namespaces=("a", "b"), lease_namespace="b").lease_place() == "b"
        with pytest.raises(ValueError, match="must be one of"):
            Options(namespaces=("a",), lease_namespace="c").lease_place()


def test_the_watches_write_nothing() -> None:
    from assay_operator.handlers import watching  # noqa: PLC0415

    made = watching.settings("assay-operator")
    assert not made.posting.enabled
    assert made.scanning.disabled and made.peering.standalone
    registry = watching.registry(lambda *_: None, asyncio.Future, with_lease=True)  # type: ignore[arg-type]
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    kinds = {handler.id for handler in registry._watching.get_all_handlers()}
    assert kinds == {f"see-{kind}" for kind in (*OWNERS, *CHILDREN, "Lease")}
