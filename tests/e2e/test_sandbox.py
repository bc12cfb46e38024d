"""Untrusted programs are judged in an ordinary pod that has no privilege at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.assay import Assay
from tests.cluster.settings import REPOSITORY
from tests.kube import Json, Kube, wait_for

FOLDER = REPOSITORY / "trainer/assay_verifiers/sandbox"
NAMESPACE = "assay-restricted"
POD = "controls"


@pytest.fixture
def restricted(assay: Assay) -> Iterator[Kube]:
    """A namespace that admits only pods of the Pod Security level `restricted`."""
    kubectl = assay.cluster.kubectl
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s")
    kubectl("create", "namespace", NAMESPACE)
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    yield Kube(assay.cluster, NAMESPACE)
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def pod(image: str) -> Json:
    """The sandbox's files and a Python, in a pod that the level `restricted` admits."""
    container = {
        "name": POD,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "/opt/check/sandbox", "check", "landlock"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "sandbox", "mountPath": "/opt/check/sandbox", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                {"name": "sandbox", "configMap": {"name": "sandbox"}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


def test_every_hostile_program_is_held_under_the_restricted_level(
    assay: Assay, restricted: Kube
) -> None:
    files = [f"--from-file={path}" for path in sorted(FOLDER.glob("*.py"))]
    restricted.kubectl("create", "configmap", "sandbox", *files)
    restricted.apply(pod(assay.engine_image))

    def ended() -> str:
        status = (restricted.get("pod", POD) or {}).get("status", {})
        return status.get("phase", "") if status.get("phase") in ("Succeeded", "Failed") else ""

    phase = wait_for("the controls' end", ended, 180, every=1)
    said = restricted.kubectl("logs", POD)
    assert phase == "Succeeded", said
    held = [line for line in said.splitlines() if " holds " in line]
    assert len(held) > 30, said
    assert "FAILS" not in said
