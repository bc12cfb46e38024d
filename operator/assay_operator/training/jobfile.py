"""The trainer's job file, from a VerifiedRLJob's spec: one JSON that says everything about a run.

Every spec that the API's model accepts gives a file that the trainer accepts, so no job starts and
then finds that its settings are wrong.
"""

from __future__ import annotations

from assay_operator.api.meta import seconds
from assay_operator.api.sources import DATA_KEY, SUITE_KEY
from assay_operator.api.training import Data, Evaluation, RolloutEngines, Trainer
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.api.verifiers import plain
from assay_operator.inference.objects import parse_source
from assay_operator.inference.observation import ENGINE_PORT
from assay_operator.plan import Json

JOB_FILE = "/etc/assay/job/job.json"
DATA_MOUNT = "/etc/assay/data"
SUITE_FILE = f"/etc/assay/suite/{SUITE_KEY}"
CHECKPOINTS_MOUNT = "/checkpoints"
STATUS_PORT = 8080

_LONGEST_WAIT = 86400
"""Seconds that the trainer waits for engines at most: its own bound."""
_OF_POD = {"engines", "engine", "template"}
_OF_TRAINER_POD = {"nodes", "gpusPerNode", "accelerator", "resources", "template"}


def engine_url(name: str, namespace: str, index: int) -> str:
    """Where the job's engine with that number answers: a pod of its StatefulSet."""
    return f"http://{name}-engine-{index}.{name}-engines.{namespace}.svc:{ENGINE_PORT}"


def run_folder(name: str) -> str:
    """The job's own folder, in all of its pods."""
    return f"{CHECKPOINTS_MOUNT}/{name}"


def data_key(data: Data) -> str:
    """The key of the ConfigMap that `data.configMap` names."""
    return data.key or DATA_KEY


def data_file(data: Data) -> str | None:
    """Where the trainer finds items of the user's own; None where they are made.

    The ConfigMap, or the claim, is mounted at `DATA_MOUNT`.
    """
    if data.configMap is not None:
        return f"{DATA_MOUNT}/{data_key(data)}"
    return None if data.claim is None else f"{DATA_MOUNT}/{data.path}"


def suite_key(evaluation: Evaluation) -> str:
    """The key of the ConfigMap that `evaluation.suite.configMap` names; it becomes `SUITE_FILE`."""
    return evaluation.suite.key or SUITE_KEY


def job_file(name: str, namespace: str, spec: VerifiedRLJobSpec, *, fused: bool = False) -> Json:
    """The job file's content.

    Args:
        name: of the job.
        namespace: of the job.
        spec: what the user wants.
        fused: whether its engines are made to run fused kernels: then the trainer asks them.
    """
    deadline = seconds(spec.progressDeadline)
    context = spec.model.contextLength
    return {
        "model": {
            "path": parse_source(spec.model.source).path,
            **({} if context is None else {"contextLength": context}),
        },
        "data": _data(spec.data),
        "verifiers": [plain(verifier) for verifier in spec.verifiers],
        "algorithm": spec.algorithm.model_dump(mode="json", exclude_none=True),
        "rollout": {
            **_rollout(name, namespace, spec.rollout, deadline),
            **({"kernels": "fused"} if fused else {}),
        },
        "trainer": _trainer(spec.trainer),
        "checkpoint": {
            "directory": run_folder(name),
            "every": spec.checkpoint.every,
            "keep": spec.checkpoint.keep,
        },
        **({"evaluation": _evaluation(spec.evaluation)} if spec.evaluation else {}),
        # The operator asks at the pod's address.
        "status": {"host": "0.0.0.0", "port": STATUS_PORT, "progressSeconds": deadline},
        "seed": spec.seed,
    }


def _data(data: Data) -> Json:
    places = {"source", "configMap", "key", "claim", "path"}
    rest = data.model_dump(mode="json", exclude=places, exclude_none=True)
    return {"source": data.source or data_file(data), **rest}


def _rollout(name: str, namespace: str, rollout: RolloutEngines, deadline: int) -> Json:
    rest = rollout.model_dump(mode="json", exclude=_OF_POD, exclude_none=True)
    urls = [engine_url(name, namespace, index) for index in range(rollout.engines)]
    # Engines that do not come are no progress: so the deadline for that holds here too.
    return {"engines": urls, "waitSeconds": min(deadline, _LONGEST_WAIT), **rest}


def _trainer(trainer: Trainer) -> Json:
    return trainer.model_dump(mode="json", exclude=_OF_TRAINER_POD, exclude_none=True)


def _evaluation(evaluation: Evaluation) -> Json:
    rest = evaluation.model_dump(mode="json", exclude={"suite"}, exclude_none=True)
    return {"suite": evaluation.suite.source or SUITE_FILE, **rest}
