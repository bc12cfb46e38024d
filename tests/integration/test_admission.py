"""What only the operator may write: admission policies of the chart's default values, asked as
people and accounts that they do and do not hold for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from assay_operator.plan import EVALUATION_ANNOTATION, OWNER_LABEL
from tests.assay import RELEASE, SYSTEM
from tests.kube import Json, Kube, wait_for
from tests.refused import GOOD, MADE_BY, named

OPERATOR = f"system:serviceaccount:{SYSTEM}:{RELEASE}-operator"
GITOPS = "system:serviceaccount:gitops:controller"
"""May do anything, and does what others write into their folders."""
EDITOR = "admission-test-editor"
WEIGHED = {EVALUATION_ANNOTATION: json.dumps({"verified": True, "score": 1.0, "suite": "mine"})}
OWNED = {OWNER_LABEL: "verifiedrljob.solver"}
NAME, FENCED = "guarded", "fenced"
STATUSES = {"InferenceService": "infsvc", "VerifiedRLJob": "vrl", "Checkpoint": "ckpt"}
"""The kinds that have a status, and their short names."""


def checkpoint(*, job: bool = False, **metadata: Json) -> Json:
    """A Checkpoint with further metadata, made by a job or brought by somebody."""
    item = named("Checkpoint", NAME, {**GOOD["Checkpoint"], **({"job": MADE_BY} if job else {})})
    return {**item, "metadata": {**item["metadata"], **metadata}}


CLAIMS = {
    "spec.job": checkpoint(job=True),
    "annotation": checkpoint(annotations=WEIGHED),
    "label": checkpoint(labels=OWNED),
    "all of them": checkpoint(job=True, annotations=WEIGHED, labels=OWNED),
}


def answer(kube: Kube, user: str, *words: str, item: Json | None = None) -> str:
    """What the API server says against something that `user` would do; empty where nothing. It is
    only tried."""
    done = kube.cluster.kubectl(
        *("-n", kube.namespace, *words, "--dry-run=server", "--as", user),
        input=yaml.safe_dump(item) if item else None,
        check=False,
    )
    return done.stderr if done.returncode else ""


def create(kube: Kube, user: str, item: Json) -> str:
    return answer(kube, user, "create", "-f", "-", item=item)


def patch_status(kube: Kube, user: str, kind: str) -> str:
    patch = json.dumps({"status": {"observedGeneration": 99}})
    words = ("patch", STATUSES[kind], NAME, "--subresource=status", "--type=merge", "-p", patch)
    return answer(kube, user, *words)


@pytest.fixture(scope="module", autouse=True)
def people(kube: Kube) -> Iterator[None]:
    """Somebody who may edit, statuses included, and an account that may do anything."""
    plurals = ("inferenceservices", "verifiedrljobs", "checkpoints")
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": EDITOR},
        "rules": [
            {
                "apiGroups": ["assay.dev"],
                "resources": [f"{plural}/status" for plural in plurals],
                "verbs": ["get", "patch"],
            }
        ],
    }
    kube.apply(role)
    bind = ("create", "rolebinding")
    kube.kubectl(*bind, f"{EDITOR}-status", f"--role={EDITOR}", f"--user={EDITOR}")
    kube.kubectl(*bind, EDITOR, "--clusterrole=edit", f"--user={EDITOR}")
    kube.kubectl(*bind, "gitops", "--clusterrole=cluster-admin", f"--user={GITOPS}")
    wait_for("the editor's rights", lambda: not create(kube, EDITOR, checkpoint()), seconds=20)
    yield
    kube.kubectl("delete", "rolebinding", EDITOR, f"{EDITOR}-status", "gitops")
    kube.kubectl("delete", "role", EDITOR)


@pytest.fixture
def restored(kube: Kube) -> Iterator[Json]:
    """A Checkpoint of a job, as the cluster's administrator brings it back from a backup."""
    item = checkpoint(job=True, annotations=WEIGHED, labels=OWNED)
    kube.apply(item)
    yield item
    kube.delete("ckpt", NAME)


def test_the_api_server_understands_every_rule(kube: Kube) -> None:
    for part in ("checkpoints", "status"):
        name = f"{part}.{RELEASE}-operator.{SYSTEM}"

        def checked(name: str = name) -> Json | None:
            policy = kube.get("validatingadmissionpolicy", name) or {}
            status: Json = policy.get("status") or {}
            return status if "typeChecking" in status else None

        status = wait_for(f"the check of {name}", checked, seconds=30)
        assert not status["typeChecking"].get("expressionWarnings")


def test_an_editor_brings_weights(kube: Kube) -> None:
    labelled = checkpoint(labels={"team": "a"}, annotations={"note": "from the archive"})
    assert create(kube, EDITOR, labelled) == ""


@pytest.mark.parametrize("user", [EDITOR, GITOPS])
@pytest.mark.parametrize("claim", CLAIMS)
def test_nobody_says_that_a_run_made_and_weighed_what_they_bring(
    kube: Kube, user: str, claim: str
) -> None:
    said = create(kube, user, CLAIMS[claim])
    assert f"'checkpoints.{RELEASE}-operator.{SYSTEM}'" in said
    assert (
        "set spec.evaluation" if CLAIMS[claim]["spec"].get("job") else "only the operator sets"
    ) in said


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_operator_does(kube: Kube, claim: str) -> None:
    assert create(kube, OPERATOR, CLAIMS[claim]) == ""


def test_an_administrator_restores_a_jobs_checkpoint_and_the_operator_goes_on_with_it(
    kube: Kube, restored: Json
) -> None:
    kube.kubectl("wait", f"ckpt/{NAME}", "--for=condition=Verified", "--timeout=60s")
    there = kube.get("ckpt", NAME) or {}
    assert there["spec"]["job"] == restored["spec"]["job"]
    assert there["status"]["score"] == 1.0


@pytest.mark.parametrize(
    "words",
    [
        ("annotate", "--overwrite", "ckpt", NAME, f"{EVALUATION_ANNOTATION}={{}}"),
        ("annotate", "ckpt", NAME, f"{EVALUATION_ANNOTATION}-"),
        ("label", "--overwrite", "ckpt", NAME, f"{OWNER_LABEL}=verifiedrljob.other"),
        ("label", "ckpt", NAME, f"{OWNER_LABEL}-"),
    ],
    ids=["other score", "no score", "other job", "no job"],
)
def test_an_editor_does_not_change_what_the_operator_wrote_into_it(
    kube: Kube, restored: Json, words: tuple[str, ...]
) -> None:
    for user in (EDITOR, GITOPS):
        assert "only the operator sets" in answer(kube, user, *words)
    assert answer(kube, OPERATOR, *words) == ""


def test_an_editor_notes_all_else(kube: Kube, restored: Json) -> None:
    assert answer(kube, EDITOR, "annotate", "ckpt", NAME, "note=good") == ""
    assert answer(kube, EDITOR, "label", "ckpt", NAME, "team=a") == ""
    assert answer(kube, EDITOR, "delete", "ckpt", NAME) == ""


@pytest.mark.parametrize("kind", STATUSES)
def test_a_status_is_the_operators_whoever_has_the_right_to_write_it(kube: Kube, kind: str) -> None:
    kube.apply(named(kind, NAME, GOOD[kind]))
    try:
        for user in (EDITOR, GITOPS):
            assert "only the operator writes it" in patch_status(kube, user, kind)
        assert patch_status(kube, OPERATOR, kind) == ""
    finally:
        kube.delete(STATUSES[kind], NAME)


@pytest.mark.parametrize(
    ("kind", "policies"),
    [
        ("InferenceService", {f"{FENCED}-engine", f"{FENCED}-router"}),
        ("VerifiedRLJob", {f"{FENCED}-engines", f"{FENCED}-trainer"}),
    ],
)
def test_the_api_server_takes_the_network_policies(
    kube: Kube, kind: str, policies: set[str]
) -> None:
    kube.apply(named(kind, FENCED, GOOD[kind]))
    selector = f"{OWNER_LABEL}={kind.lower()}.{FENCED}"

    def there() -> bool:
        found = kube.list("networkpolicies", selector)
        return {item["metadata"]["name"] for item in found} == policies

    try:
        wait_for(f"the policies of {kind}", there, seconds=60)
    finally:
        kube.delete(STATUSES[kind], FENCED)
        wait_for("nothing left", lambda: not kube.list("networkpolicies", selector), seconds=60)
