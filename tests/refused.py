"""Specs that are refused, and in which words: by the API server and by the operator alike.

tests/unit asks pydantic, tests/integration a real API server.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from assay_operator.api.meta import API_VERSION

Json = dict[str, Any]

DIGEST = f"sha256:{'0123456789abcdef' * 4}"

GOOD: dict[str, Json] = {
    "InferenceService": {"model": {"source": "pvc://models/base"}, "replicas": 0},
    "VerifiedRLJob": {
        "model": {"source": "pvc://models/base"},
        "data": {"source": "reasoning-gym://number_sorting?seed=7"},
        "verifiers": [{"type": "math"}],
        "trainer": {"steps": 40},
        "checkpoint": {"storage": {"claim": "runs"}},
        "evaluation": {"suite": {"configMap": "heldout"}, "minScore": 0.6},
        "suspend": True,
    },
    "Checkpoint": {"source": "pvc://runs/solver/checkpoints/step-000020", "digest": DIGEST},
    "CheckpointGrant": {"from": [{"namespace": "serving"}]},
}
"""A good spec of each kind."""


@dataclass(frozen=True)
class Refused:
    """One change that makes a good spec a bad one.

    Attributes:
        kind: of the object.
        changes: values by path within the spec; None takes a field away.
        says: words of the answer.
    """

    kind: str
    changes: Json
    says: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.changes}"

    @property
    def spec(self) -> Json:
        """The bad spec."""
        return changed(GOOD[self.kind], self.changes)

    @property
    def object(self) -> Json:
        """The whole object."""
        return named(self.kind, "bad", self.spec)


def named(kind: str, name: str, spec: Json) -> Json:
    """An object of ours."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def changed(spec: Json, changes: Json) -> Json:
    """A copy with other values at some paths."""
    made = copy.deepcopy(spec)
    for path, value in changes.items():
        *steps, last = path.split(".")
        node = made
        for step in steps:
            node = node.setdefault(step, {})
        if value is None:
            node.pop(last)
        else:
            node[last] = value
    return made


def _service(says: str, **changes: Any) -> Refused:
    return _case("InferenceService", says, changes)


def _job(says: str, **changes: Any) -> Refused:
    return _case("VerifiedRLJob", says, changes)


def _checkpoint(says: str, **changes: Any) -> Refused:
    return _case("Checkpoint", says, changes)


def _case(kind: str, says: str, changes: Json) -> Refused:
    # a__b stands for the path a.b.
    return Refused(kind, {key.replace("__", "."): value for key, value in changes.items()}, says)


GATE = {"suite": {"configMap": "heldout"}}
SCALED = {"max": 4, "objectives": {"ttftMs": 500}}
MADE_ITEMS = "reasoning-gym://number_sorting"
WEIGHING = {"suite": {"configMap": "heldout"}, "minScore": 0.5}
ON_CPU = {"steps": 40, "accelerator": "cpu"}
MADE_BY = {"name": "solver", "uid": "0-1", "step": 20, "version": "1.20"}

REFUSED: tuple[Refused, ...] = (
    # --- What a service serves and how it changes --------------------------------------------
    _service("follow.namespace needs follow.claim", model__follow={"job": "a", "namespace": "b"}),
    _service("only beside follow.namespace", model__follow={"job": "a", "claim": "c"}),
    _service(
        "take follow away", model__source="checkpoint://good", model__follow={"job": "solver"}
    ),
    _service("checkpoint://NAME", model__source="checkpoint://Bad"),
    _service("checkpoint://NAME", model__source="checkpoint://a/b"),
    _service("lower-case letters", model__follow={"job": "a/b"}),
    _service("needs strategy InPlace", rollout={"strategy": "Recreate", "inFlight": "Continue"}),
    _service("such as 90s", rollout__canary={"hold": "1 hour"}),
    _service("such as 90s", rollout__canary={"hold": "60"}),
    _service("above 0", rollout__gate={**GATE, "timeout": "0m"}),
    _service("looks above 1 need items", rollout__gate={**GATE, "looks": 3}),
    _service("needs a GPU", engine={"accelerator": "cpu", "deterministic": True}),
    _service("raise items", rollout__gate={**GATE, "items": 10, "minItems": 20}),
    _service("a key of a ConfigMap", rollout__gate={"suite": {"configMap": "a", "key": "../b"}}),
    # --- How many replicas it has -------------------------------------------------------------
    _service("must not be above autoscaling.max", autoscaling={**SCALED, "min": 5}),
    _service("one objective at least", autoscaling={"max": 4, "objectives": {}}),
    _service(
        "needs one of them",
        autoscaling={"max": 4, "objectives": {"concurrency": 8, "attainment": 0.9}},
    ),
    _service("a replica always stays", autoscaling={**SCALED, "scaleToZeroAfter": "15m"}),
    _service("above 0", autoscaling={**SCALED, "min": 0, "scaleToZeroAfter": "0s"}),
    _service("1h at most", autoscaling={**SCALED, "scaleDownAfter": "61m"}),
    _service("does not scale to zero", autoscaling={**SCALED, "min": 0, "driver": "hpa"}),
    # --- What a job trains --------------------------------------------------------------------
    _job("pvc://CLAIM/PATH", model__source="oci://registry.example/m:v1"),
    _job("pvc://CLAIM/PATH", model__source="checkpoint://good"),
    _job("name the place itself", model__source="pvc://models/../etc"),
    _job("exactly one of source", data={}),
    _job("exactly one of source", data={"source": MADE_ITEMS, "configMap": "a"}),
    _job("data.claim needs data.path", data={"claim": "a"}),
    _job("data.claim needs data.path", data={"configMap": "a", "path": "b"}),
    _job("key stands only beside configMap", data={"claim": "a", "path": "b", "key": "c"}),
    _job("generated items have no splits", data={"source": MADE_ITEMS, "split": "train"}),
    _job("reasoning-gym://NAME?key=value", data={"source": "https://items.example/a"}),
    _job("reasoning-gym://NAME?key=value", data={"source": f"{MADE_ITEMS}?seed"}),
    _job("path within the claim", data={"claim": "a", "path": "/etc/passwd"}),
    _job("name the place itself", data={"claim": "a", "path": "a/../../b"}),
    _job("type must be one of all, code", verifiers=[{"type": "oracle"}]),
    _job("give each its own", verifiers=[{"type": "math"}, {"type": "math"}]),
    _job("give each its own", verifiers=[{"type": "math"}, {"type": "code", "name": "math"}]),
    # --- How it trains ------------------------------------------------------------------------
    _job("groupSize must be at least 2", algorithm={"groupSize": 1}),
    _job("groupSize must be at least 2", algorithm={"name": "rloo", "groupSize": 1}),
    _job("clip must be two numbers", algorithm={"clip": [0, 0.2]}),
    _job("clip must be two numbers", algorithm={"clip": [0.2, 2e6]}),
    _job("tis only", algorithm={"importanceCorrection": {"type": "none", "cap": 2}}),
    _job("icepop only", algorithm={"importanceCorrection": {"alpha": 0.5}}),
    _job(
        "a group of one never has variance",
        algorithm={"name": "reinforce++", "groupSize": 1},
        rollout={"resampleRounds": 2},
    ),
    _job("more than model.contextLength", model__contextLength=1024),
    _job("more than trainer.tokensPerMicroBatch", rollout={"maxTokens": 16384}),
    _job("multiple of updatesPerStep", trainer={"steps": 40, "updatesPerStep": 3}),
    _job("more than steps", trainer={"steps": 40, "warmupSteps": 41}),
    _job("one process", trainer={"steps": 40, "accelerator": "cpu", "gpusPerNode": 2}),
    _job("trainer.kernels fused needs", trainer={**ON_CPU, "kernels": "fused"}),
    _job("trainer.deterministic needs a GPU", trainer={**ON_CPU, "deterministic": True}),
    _job(
        "trainer.deterministic needs a GPU",
        trainer={"steps": 40, "deterministic": True, "kernels": "stock"},
    ),
    _job(
        "trainer.deterministic needs a GPU",
        trainer={"steps": 40, "deterministic": True, "precision": "fp32"},
    ),
    _job("go together", trainer={"steps": 40, "deterministic": True}),
    _job("go together", rollout__engine={"deterministic": True}),
    _job(
        "cannot be stock",
        trainer={"steps": 40, "deterministic": True},
        rollout__engine={"deterministic": True, "kernels": "stock"},
    ),
    _job("--port", rollout__engine={"extraArgs": ["--port=1"]}),
    _job("needs a GPU", rollout__engine={"accelerator": "cpu", "deterministic": True}),
    _job(
        "use spec.engine.deterministic",
        rollout__engine={"extraArgs": ["--enable-deterministic-inference"]},
    ),
    # --- What it keeps ------------------------------------------------------------------------
    _job("checkpoint.every cannot be more", checkpoint__every=41),
    _job("evaluation.every cannot be more", evaluation__every=41),
    _job("must be a multiple", evaluation__every=12),
    _job("exactly one of claim", checkpoint__storage={}),
    _job("exactly one of claim", checkpoint__storage={"claim": "a", "size": "1Gi"}),
    _job("only beside size", checkpoint__storage={"claim": "a", "className": "fast"}),
    _job("such as 50Gi", checkpoint__storage={"size": "much"}),
    _job("such as 50Gi", checkpoint__storage={"size": "0Gi"}),
    _job("exactly one of configMap and source", evaluation__suite={}),
    _job(
        "generated items have no splits",
        evaluation__suite={"source": f"{MADE_ITEMS}?seed=8"},
        evaluation__split="test",
    ),
    _job("above 0", progressDeadline="0s"),
    _job("such as 90s", ttlAfterFinished="a day"),
    # --- Checkpoints and grants ---------------------------------------------------------------
    _checkpoint("pvc://CLAIM/PATH", source="oci://registry.example/m:v1"),
    _checkpoint("64 hexadecimal digits", digest="sha256:12ab"),
    _checkpoint("needs its digest", digest=None, job=MADE_BY),
    _checkpoint("weighed in training", job=MADE_BY, evaluation=WEIGHING),
    _checkpoint("ATTEMPT.STEP", job={**MADE_BY, "version": "20"}),
    _checkpoint("the uid of an object", job={**MADE_BY, "uid": ""}),
    _case("CheckpointGrant", "lower-case letters", {"from": [{"namespace": "*"}]}),
)

BEYOND: tuple[tuple[str, str, Any], ...] = (
    ("InferenceService", "rollout.maxUnavailable", -1),
    ("InferenceService", "rollout.gate", {**GATE, "minScore": 1.5}),
    ("InferenceService", "rollout.gate", {**GATE, "confidence": 0.5}),
    ("InferenceService", "rollout.gate", {**GATE, "confidence": 1}),
    ("InferenceService", "autoscaling", {"objectives": {"ttftMs": 500}}),
    ("InferenceService", "autoscaling", {"max": 4}),
    ("InferenceService", "autoscaling", {**SCALED, "max": 0, "min": 0}),
    ("InferenceService", "autoscaling", {**SCALED, "max": 1001}),
    ("InferenceService", "autoscaling", {**SCALED, "driver": "cron"}),
    ("InferenceService", "autoscaling.objectives", {"ttftMs": 0}),
    ("InferenceService", "autoscaling.objectives", {"ttftMs": 500, "attainment": 1}),
    ("VerifiedRLJob", "trainer", {}),
    ("VerifiedRLJob", "trainer.steps", 0),
    ("VerifiedRLJob", "trainer.nodes", 0),
    ("VerifiedRLJob", "trainer.learningRate", 0),
    ("VerifiedRLJob", "trainer.betas", [0.9]),
    ("VerifiedRLJob", "trainer.betas", [0.9, 1]),
    ("VerifiedRLJob", "algorithm.name", "ppo"),
    ("VerifiedRLJob", "algorithm.clip", [0.2]),
    ("VerifiedRLJob", "rollout.temperature", 0),
    ("VerifiedRLJob", "rollout.maxStaleness", 2),
    ("VerifiedRLJob", "checkpoint.keep", 0),
    ("VerifiedRLJob", "evaluation.minScore", 1.1),
    ("VerifiedRLJob", "verifiers", [{"type": "math", "weight": 0}]),
    ("VerifiedRLJob", "verifiers", [{"name": "math"}]),
    ("VerifiedRLJob", "backoffLimit", -1),
    ("VerifiedRLJob", "seed", 2**32),
    ("VerifiedRLJob", "train", {}),
    ("Checkpoint", "evaluation", {"suite": {"configMap": "heldout"}}),
    ("Checkpoint", "source", None),
    ("CheckpointGrant", "from", []),
    ("CheckpointGrant", "jobs", []),
)
"""Kind, path and value that the schema alone refuses, in the API server's own words."""
