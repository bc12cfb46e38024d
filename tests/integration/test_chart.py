"""The chart with Helm: what it renders, what it refuses, and what its ServiceAccount may do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pytest
import yaml

from assay_operator.api import schema as crds
from assay_operator.config import OperatorConfig
from assay_operator.inference.observation import ACTIVATOR_STATUS_PORT, ENGINE_PORT, METRICS_PORT
from assay_operator.training.jobfile import STATUS_PORT
from tests.cluster import Cluster
from tests.cluster.settings import REPOSITORY
from tests.kube import Json, wait_for

CHART = REPOSITORY / "charts" / "assay"
RELEASE = "chart-test"
"""Its operator's objects are called chart-test-assay-operator."""
SYSTEM = "chart-test-system"
WATCHED = "chart-test-watched"
OTHER = "chart-test-other"
READ = ("inferenceservices", "verifiedrljobs", "checkpoints", "checkpointgrants")
"""The custom resources."""
CHILDREN = (
    "deployments.apps",
    "statefulsets.apps",
    "jobs.batch",
    "services",
    "configmaps",
    "networkpolicies.networking.k8s.io",
    "poddisruptionbudgets.policy",
    "horizontalpodautoscalers.autoscaling",
)
CLAIMS = "persistentvolumeclaims"
WORK = [
    *((verb, f"{kind}.assay.dev") for kind in READ for verb in ("get", "list", "watch")),
    *((verb, "checkpoints.assay.dev") for verb in ("create", "patch", "delete")),
    *(
        (verb, f"{kind}.assay.dev/status")
        for kind in ("inferenceservices", "verifiedrljobs", "checkpoints")
        for verb in ("get", "patch")
    ),
    *(
        (verb, kind)
        for kind in CHILDREN
        for verb in ("get", "list", "watch", "create", "patch", "delete")
    ),
    *((verb, CLAIMS) for verb in ("get", "list", "watch", "create", "patch")),
    *((verb, "scaledobjects.keda.sh") for verb in ("get", "create", "patch", "delete")),
    *((verb, "pods") for verb in ("get", "list", "watch", "patch", "delete")),
    ("create", "events"),
    *((verb, f"leases.coordination.k8s.io/{RELEASE}-assay-operator") for verb in ("list", "watch")),
]
"""What the operator does in every namespace that it watches."""
ELECTION = [
    ("create", "leases.coordination.k8s.io"),
    *((verb, f"leases.coordination.k8s.io/{RELEASE}-assay-operator") for verb in ("get", "update")),
]
"""What it does in its own."""
FORBIDDEN = [
    *((verb, "secrets") for verb in ("get", "list", "watch", "create")),
    *(
        (verb, f"{kind}.assay.dev")
        for kind in ("inferenceservices", "verifiedrljobs", "checkpointgrants")
        for verb in ("create", "update", "patch", "delete")
    ),
    ("update", "checkpoints.assay.dev"),
    ("delete", CLAIMS),
    ("create", "pods"),
    ("create", "pods/exec"),
    ("get", "pods/proxy"),
    ("create", "serviceaccounts/token"),
    ("list", "leases.coordination.k8s.io"),
    ("get", "leases.coordination.k8s.io/somebody-elses"),
    ("create", "rolebindings.rbac.authorization.k8s.io"),
    ("list", "namespaces"),
    ("list", "nodes"),
    ("list", "customresourcedefinitions.apiextensions.k8s.io"),
]


class Loader(yaml.SafeLoader):
    """Reads numbers as Helm and Kubernetes do: to YAML 1.1 the 1e-06 that Helm writes is text."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^-?[0-9]+e[-+]?[0-9]+$"), list("-0123456789")
)


def rendered(cluster: Cluster, values: Json) -> list[Json]:
    """The objects that the chart makes of `values`."""
    done = cluster.helm(
        *("template", RELEASE, CHART, "--namespace", SYSTEM, "--values", "-"),
        input=yaml.safe_dump(values),
    )
    return [item for item in yaml.load_all(done.stdout, Loader) if item]


def one(objects: list[Json], kind: str, name: str = f"{RELEASE}-assay-operator") -> Json:
    """The one object of this kind and name."""
    (found,) = (o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


def container(objects: list[Json]) -> Json:
    """The operator's container."""
    (found,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def everything() -> Json:
    """Values that switch every optional object on."""
    return {
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {}}],
            "workloads": {"metricsFrom": [{"namespaceSelector": {}}]},
        },
        "metricsApi": {"enabled": True},
        "admissionPolicy": {"exemptUsers": ["system:serviceaccount:velero:velero"]},
        "priorityClassName": "system-cluster-critical",
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "resources": {},
        "watchNamespaces": ["1", "true"],
        "replicas": 1,
    }


@pytest.mark.parametrize("values", [{}, everything()], ids=["default", "everything"])
def test_helm_finds_nothing_to_complain_about(cluster: Cluster, values: Json) -> None:
    done = cluster.helm("lint", "--strict", CHART, "--values", "-", input=yaml.safe_dump(values))
    assert "0 chart(s) failed" in done.stdout


def test_the_crds_are_rendered_as_they_are_and_kept(cluster: Cluster) -> None:
    objects = rendered(cluster, {})
    for kind in crds.KINDS:
        wanted = crds.crd(kind)
        there = one(objects, "CustomResourceDefinition", wanted["metadata"]["name"])
        assert there["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert there == wanted


def test_the_operator_reads_the_configuration_of_the_values(cluster: Cluster) -> None:
    config = {"engine": {"images": {"cpu": "here/engine:1"}}, "imagePullPolicy": "Never"}
    default, changed = rendered(cluster, {}), rendered(cluster, {"config": config})
    read = yaml.safe_load(one(changed, "ConfigMap")["data"]["config.yaml"])
    parsed = OperatorConfig.model_validate(read)
    assert parsed.imagePullPolicy == "Never"
    assert parsed.engine.images == {**OperatorConfig().engine.images, "cpu": "here/engine:1"}
    sums = [
        one(objects, "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for objects in (default, changed)
    ]
    assert sums[0] != sums[1], "a changed configuration must make new pods"


def test_the_pods_have_no_privileges(cluster: Cluster) -> None:
    objects = rendered(cluster, {})
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(objects)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert one(objects, "ServiceAccount")["automountServiceAccountToken"] is False


def test_a_namespaced_release_needs_nothing_of_the_whole_cluster(cluster: Cluster) -> None:
    values = {
        "watchNamespaces": ["b", "a", "b"],
        "crds": {"install": False},
        "rbac": {"aggregate": False},
        "admissionPolicy": {"enabled": False},
    }
    objects = rendered(cluster, values)
    assert [item["kind"] for item in objects if "namespace" not in item["metadata"]] == []
    roles = [
        item["metadata"]["namespace"]
        for item in objects
        if item["kind"] == "Role" and not item["metadata"]["name"].endswith("-lease")
    ]
    assert sorted(roles) == ["a", "b", SYSTEM]
    args = container(objects)["args"]
    named = [args[i + 1] for i, word in enumerate(args) if word == "--namespace"]
    assert named == ["a", "b", SYSTEM]


def test_the_network_policy_lets_engines_routers_and_trainers_be_asked(cluster: Cluster) -> None:
    objects = rendered(cluster, {"networkPolicy": {"enabled": True}})
    rules = one(objects, "NetworkPolicy")["spec"]["egress"]
    ports = {port["port"] for rule in rules for port in rule["ports"]}
    asked = {ENGINE_PORT, METRICS_PORT, ACTIVATOR_STATUS_PORT, STATUS_PORT}
    assert ports == {53, 443, 6443} | asked


def test_the_operator_is_told_by_what_others_know_its_pods(cluster: Cluster) -> None:
    def read(objects: list[Json]) -> OperatorConfig:
        return OperatorConfig.model_validate(
            yaml.safe_load(one(objects, "ConfigMap")["data"]["config.yaml"])
        )

    def pods(objects: list[Json]) -> Json:
        return dict(one(objects, "Deployment")["spec"]["template"]["metadata"])

    default = rendered(cluster, {})
    peers = [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    watched = rendered(cluster, {"networkPolicy": {"workloads": {"metricsFrom": peers}}})
    without = rendered(cluster, {"networkPolicy": {"workloads": {"enabled": False}}})
    policies = read(default).networkPolicy
    assert policies is not None and policies.metricsFrom == []
    assert policies.operator.namespace == SYSTEM
    assert policies.operator.podLabels.items() <= pods(default)["labels"].items()
    told = read(watched).networkPolicy
    assert told is not None and told.metricsFrom == peers
    assert read(without).networkPolicy is None
    sums = {pods(each)["annotations"]["checksum/config"] for each in (default, watched, without)}
    assert len(sums) == 3, "a changed configuration must make new pods"


@pytest.mark.parametrize(
    ("namespaces", "places"), [([], None), (["b", "a"], ["a", "b", SYSTEM])], ids=["all", "some"]
)
def test_admission_policies_hold_where_the_operator_works(
    cluster: Cluster, namespaces: list[str], places: list[str] | None
) -> None:
    objects = rendered(cluster, {"watchNamespaces": namespaces})
    named = {o["metadata"]["name"] for o in objects if o["kind"] == "ValidatingAdmissionPolicy"}
    assert len(named) == 2
    for name in named:
        spec = one(objects, "ValidatingAdmissionPolicyBinding", name)["spec"]
        assert (spec["policyName"], spec["validationActions"]) == (name, ["Deny"])
        selector = spec.get("matchResources", {}).get("namespaceSelector")
        terms = selector["matchExpressions"] if selector else []
        assert [(term["operator"], term["values"]) for term in terms] == (
            [("In", places)] if places else []
        )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"replicas": "two"}, "replicas"),
        ({"replica": 2}, "replica"),
        ({"config": {"engine": {"image": "x"}}}, "image"),
        ({"config": {"imagePullPolicy": "Sometimes"}}, "imagePullPolicy"),
        ({"watchNamespaces": ["Team_A"]}, "watchNamespaces"),
        ({"metrics": {"serviceMonitor": {"interval": "soon"}}}, "interval"),
        ({"admissionPolicy": {"exemptUsers": [""]}}, "exemptUsers"),
        ({"networkPolicy": {"workloads": {"metricsFrm": []}}}, "metricsFrm"),
    ],
)
def test_a_bad_value_is_refused_by_name(cluster: Cluster, values: Json, says: str) -> None:
    done = cluster.helm(
        *("template", RELEASE, CHART, "--values", "-"), input=yaml.safe_dump(values), check=False
    )
    assert done.returncode != 0
    assert says in done.stderr


def test_an_api_that_somebody_else_serves_is_not_taken_away(cluster: Cluster) -> None:
    """As this cluster's release serves external metrics, so may KEDA do."""
    done = cluster.helm(
        *("template", RELEASE, CHART, "--namespace", SYSTEM, "--dry-run=server"),
        *("--set", "metricsApi.enabled=true"),
        check=False,
    )
    assert done.returncode != 0
    assert "external.metrics.k8s.io is served by assay-system/assay-metrics-api" in done.stderr


Rule = tuple[str, str]
"""A verb and RESOURCE.GROUP, with /NAME or /SUBRESOURCE."""
SUBRESOURCES = ("status", "scale", "exec", "proxy", "token")


def review(namespace: str, rule: Rule, user: str) -> Json:
    """The question whether `user` may do this, as `kubectl auth can-i` asks it."""
    kind, _, detail = rule[1].partition("/")
    resource, _, group = kind.partition(".")
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user,
            "resourceAttributes": {
                "namespace": namespace,
                "verb": rule[0],
                "group": group,
                "resource": resource,
                ("subresource" if detail in SUBRESOURCES else "name"): detail,
            },
        },
    }


def allowed(cluster: Cluster, namespace: str, rules: Iterable[Rule], user: str) -> set[Rule]:
    """Those of `rules` that `user` may do in `namespace`, asked in one go."""
    asked = list(rules)
    text = yaml.safe_dump_all([review(namespace, rule, user) for rule in asked])
    done = cluster.kubectl("create", "-f", "-", "-o", "yaml", input=text)
    answers = [answer for answer in yaml.safe_load_all(done.stdout) if answer]
    assert len(answers) == len(asked)
    return {
        rule for rule, answer in zip(asked, answers, strict=True) if answer["status"].get("allowed")
    }


@pytest.fixture(scope="module")
def namespaces(cluster: Cluster) -> Iterator[None]:
    """Empty namespaces to install into."""
    names = (SYSTEM, WATCHED, OTHER)
    cluster.kubectl("delete", "namespace", *names, "--ignore-not-found")
    for name in names:
        cluster.kubectl("create", "namespace", name)
    yield
    cluster.kubectl("delete", "namespace", *names, "--wait=false")


@pytest.fixture(scope="module", params=["cluster", "namespaced"])
def rights(request: pytest.FixtureRequest, cluster: Cluster, namespaces: None) -> Iterator[str]:
    """The chart's rights alone, without an operator that would use them."""
    values = {
        "crds": {"install": False},
        "watchNamespaces": [WATCHED] if request.param == "namespaced" else [],
    }
    kinds = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    objects = [item for item in rendered(cluster, values) if item["kind"] in kinds]
    text = yaml.safe_dump_all(objects)
    cluster.kubectl("apply", "-f", "-", input=text)
    yield request.param
    cluster.kubectl("delete", "--ignore-not-found", "-f", "-", input=text)


def test_the_operator_may_do_its_work_and_nothing_else(cluster: Cluster, rights: str) -> None:
    user = f"system:serviceaccount:{SYSTEM}:{RELEASE}-assay-operator"
    every = [*WORK, *ELECTION, *FORBIDDEN]
    assert allowed(cluster, SYSTEM, every, user) == {*WORK, *ELECTION}
    assert allowed(cluster, WATCHED, every, user) == set(WORK)
    elsewhere = set(WORK) if rights == "cluster" else set()
    assert allowed(cluster, OTHER, every, user) == elsewhere


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_people_get_our_kinds_with_the_usual_roles(
    cluster: Cluster, rights: str, role: str
) -> None:
    person = f"chart-test-{role}"
    cluster.kubectl(
        *("-n", OTHER, "create", "rolebinding", person, f"--clusterrole={role}"),
        f"--user={person}",
    )
    kinds = [f"{kind}.assay.dev" for kind in READ]
    reads = {(verb, kind) for kind in kinds for verb in ("get", "list", "watch")}
    writes = {
        *((verb, kind) for kind in kinds for verb in ("create", "update", "patch", "delete")),
        ("patch", "inferenceservices.assay.dev/scale"),
    }
    statuses = {("patch", f"{kind}/status") for kind in kinds}
    expected = reads if role == "view" else reads | writes
    every = {*reads, *writes, *statuses}
    try:
        # The roles are put together by a controller, a moment after ours were made.
        wait_for(
            f"the rights of {role}",
            lambda: allowed(cluster, OTHER, every, person) == expected,
            seconds=20,
        )
    finally:
        cluster.kubectl("-n", OTHER, "delete", "rolebinding", person)
