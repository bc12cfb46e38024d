"""The parts of the test cluster that need no cluster."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster import settings
from tests.cluster.__main__ import parser
from tests.cluster.cluster import Cluster
from tests.cluster.engine import CAP_SYS_RESOURCE, has_capability
from tests.cluster.errors import ClusterError
from tests.cluster.files import content_key, write_text
from tests.cluster.gobuild import COREDNS, KEDA, KUBE, NODE_PROGRAMS, GoBuilder, build_flags
from tests.cluster.keda import Keda, adapted, other_server
from tests.cluster.kindconfig import render
from tests.cluster.nodeimage import component_of, pause_image
from tests.cluster.plan import CLUSTER, KIND, NODE, Plan
from tests.cluster.processes import capture
from tests.cluster.settings import NODE_SOURCES, Cache, cache_root
from tests.cluster.steps import order
from tests.cluster.tools import fits, parse_version


def test_content_key_follows_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    key = content_key("x", tmp_path)
    assert key == content_key("x", tmp_path)
    assert content_key("ab", "c") != content_key("a", "bc")
    (tmp_path / "a").write_text("2")
    assert content_key("x", tmp_path) != key
    (tmp_path / "a").rename(tmp_path / "b")
    assert content_key("x", tmp_path) not in (key, content_key("x"))


def test_write_text_replaces_whole_files(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"
    write_text(target, "old")
    write_text(target, "new", mode=0o755)
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("environment", "root"),
    [
        ({"ASSAY_CACHE": "/a", "XDG_CACHE_HOME": "/x"}, Path("/a")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/assay")),
        ({}, Path.home() / ".cache" / "assay"),
    ],
)
def test_cache_root(environment: dict[str, str], root: Path) -> None:
    assert cache_root(environment) == root


def test_kind_config() -> None:
    config = yaml.safe_load(render(workers=2, share=Path("/s"), may_raise_limits=False))
    assert [node["role"] for node in config["nodes"]] == ["control-plane", "worker", "worker"]
    for node in config["nodes"]:
        assert node["extraMounts"] == [{"hostPath": "/s", "containerPath": "/opt/assay"}]
    kubelet, etcd = (yaml.safe_load(patch) for patch in config["kubeadmConfigPatches"])
    assert kubelet["oomScoreAdj"] == 0
    assert etcd["kind"] == "ClusterConfiguration"


def test_kind_config_leaves_oom_score_where_it_can_be_lowered() -> None:
    assert "oomScoreAdj" not in render(workers=1, share=Path("/s"), may_raise_limits=True)


@pytest.mark.parametrize(
    ("mask", "held"), [("000001ffffffffff", True), ("000001fffeffffff", False)]
)
def test_capability(mask: str, held: bool) -> None:
    status = f"Name:\tx\nCapEff:\t0\nCapBnd:\t{mask}\n"
    assert has_capability(status, CAP_SYS_RESOURCE) is held


@pytest.mark.parametrize(
    ("image", "component"),
    [
        ("registry.example/kube-apiserver:v1.37.2", "kube"),
        ("registry.example/etcd:3.7.0-0", "kube"),
        ("registry.example/coredns/coredns:v1.14.6", "coredns"),
        ("registry.example:5000/pause:3.10.2", "pause"),
    ],
)
def test_component_of(image: str, component: str) -> None:
    assert component_of(image) == component


def test_unknown_component_is_refused() -> None:
    with pytest.raises(ClusterError, match="does not build"):
        component_of("registry.example/new-thing:v1")


def test_pause_image_is_the_one_kubeadm_names() -> None:
    assert pause_image(["r/kube-proxy:v1", "r/pause:3.10.2"]) == "r/pause:3.10.2"


@pytest.mark.parametrize(
    ("tool", "printed", "suitable"),
    [
        ("kind", "kind v0.33.0 go1.26.8 linux/amd64", True),
        ("kind", "kind v0.32.0 go1.26.8 linux/amd64", False),
        ("kubectl", "Client Version: v1.36.1", True),
        ("kubectl", "Client Version: v1.32.4-dispatcher", False),
        ("helm", "v4.4.0+g1234567", True),
        ("helm", "v3.18.0+g1234567", False),
    ],
)
def test_tools_that_fit(tool: str, printed: str, suitable: bool) -> None:
    version = parse_version(printed)
    assert version is not None
    assert fits(tool, version) is suitable


def test_parse_version_of_nonsense() -> None:
    assert parse_version("no version") is None


@pytest.mark.parametrize(
    ("module", "version", "file"),
    [
        ("k8s.io/kubernetes", settings.KUBERNETES_VERSION, "go.mod"),
        ("sigs.k8s.io/kind", settings.KIND_VERSION, "go.mod"),
        ("helm.sh/helm/v4", settings.HELM_VERSION, "go.mod"),
        ("github.com/containerd/containerd/v2", settings.CONTAINERD_VERSION, "containerd/go.mod"),
        ("github.com/kedacore/keda/v2", settings.KEDA_VERSION, "keda/go.mod"),
    ],
)
def test_go_modules_have_the_pinned_versions(module: str, version: str, file: str) -> None:
    text = (NODE_SOURCES / file).read_text()
    found = re.search(rf"^\s*{re.escape(module)} (\S+)", text, re.MULTILINE)
    assert found is not None
    assert found[1] == version


def test_program_keys_follow_their_own_sources(tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum", "kube/main.go", "podnet/podnet.go", "coredns/main.go"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    builder = GoBuilder(tmp_path, Cache(tmp_path / "cache"))
    builder.__dict__["go_version"] = "go1.26.8"
    kube, coredns = builder.path(KUBE), builder.path(COREDNS)
    (tmp_path / "podnet" / "podnet.go").write_text("changed")
    assert builder.path(KUBE) != kube
    assert builder.path(COREDNS) == coredns
    (tmp_path / "go.sum").write_text("changed")
    assert builder.path(COREDNS) != coredns


def test_build_flags_name_the_version() -> None:
    assert f"gitVersion={settings.KUBERNETES_VERSION}" in build_flags()[-1]


@pytest.mark.parametrize("builds", [True, False])
def test_plan_is_a_graph_that_ends_in_the_cluster(tmp_path: Path, builds: bool) -> None:
    plan = Plan(Cache(tmp_path), "t", 1)
    plan.__dict__["builds_node_image"] = builds
    names = order(plan.steps())
    assert names.index(KIND) < names.index(CLUSTER)
    assert (NODE in names) is builds


@pytest.mark.parametrize("builds", [True, False])
def test_nobody_pays_for_keda_who_does_not_ask(tmp_path: Path, builds: bool) -> None:
    plan = Plan(Cache(tmp_path), "t", 1)
    plan.__dict__["builds_node_image"] = builds
    assert not set(KEDA) & {*plan.programs, *NODE_PROGRAMS}
    steps = Keda.on(plan.cluster, plan.cache).steps()
    assert len(order(steps)) == len(steps), "they need no step of the cluster's"
    assert not set(order(steps)) & set(order(plan.steps()))


@pytest.mark.parametrize(
    ("service", "told"),
    [
        ({"namespace": "assay-system", "name": "api"}, "assay-system/api"),
        ({"namespace": "keda", "name": "keda-metrics-apiserver"}, ""),
        (None, ""),
    ],
)
def test_keda_takes_external_metrics_from_nobody(service: dict[str, str] | None, told: str) -> None:
    assert other_server({"spec": {"service": service}}) == told
    assert other_server(None) == ""


def test_kedas_manifests_get_the_image_that_is_on_the_nodes() -> None:
    account = {"kind": "ServiceAccount", "metadata": {"name": "keda-operator"}}
    container = {"name": "keda", "image": "there/keda:main", "imagePullPolicy": "Always"}
    pods = {"spec": {"containers": [container]}}
    deployment = {"kind": "Deployment", "spec": {"replicas": 1, "template": pods}}
    [first, second] = adapted([account, deployment], "here/keda:1")
    assert first == account
    assert second["spec"]["template"]["spec"]["containers"] == [
        {**container, "image": "here/keda:1", "imagePullPolicy": "IfNotPresent"}
    ]


def test_cluster_paths_follow_from_the_name(tmp_path: Path) -> None:
    cluster = Cluster.named("x", Cache(tmp_path))
    assert cluster.kubeconfig == tmp_path / "clusters" / "x" / "kubeconfig"
    with pytest.raises(ClusterError, match=r"tests\.cluster up"):
        cluster.kubectl("get", "nodes")
    assert cluster.problem() == "there is none"


def test_capture_tells_command_and_stderr() -> None:
    with pytest.raises(ClusterError, match="exit code 4: oh"):
        capture("sh", "-c", "echo oh >&2; exit 4")
    assert capture("no-such-program", check=False).returncode == 127
    assert capture("cat", input="in").stdout == "in"


@pytest.mark.parametrize(
    "command", ["up", "down", "status", "load", "gpus", "keda", "env", "build"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count(".") >= 1


def test_clip_takes_the_capability_out_and_becomes_runc(tmp_path: Path) -> None:
    runc = tmp_path / "runc"
    runc.write_text('#!/bin/sh\necho "$@"\n')
    runc.chmod(0o755)
    config = tmp_path / "config.json"
    process = {"capabilities": {"bounding": ["CAP_SYS_RESOURCE", "CAP_KILL"]}, "rlimits": [1]}
    config.write_text(json.dumps({"process": process}))
    arguments = ["--log", "l", "create", "--bundle", str(tmp_path), "id"]
    done = subprocess.run(
        [sys.executable, str(NODE_SOURCES / "runc-clip"), *arguments],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == arguments
    clipped = json.loads(config.read_text())["process"]
    assert clipped == {"capabilities": {"bounding": ["CAP_KILL"]}}
