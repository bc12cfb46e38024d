"""The job file that a spec gives: the trainer accepts it, whatever the API accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from assay_operator.api import algorithm, training, verified_rl_job
from assay_operator.api.schema import VERIFIED_RL_JOB
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.training import jobfile
from assay_operator.training.jobfile import job_file
from assay_trainer import settings as trainer
from assay_trainer.algorithms import settings as algorithms
from assay_trainer.job import Job, load
from tests.unit.drawn_specs import Json, fitting, part, verifiers

drawn = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# Specs that the API accepts, with any of their fields.
SPECS = part(VERIFIED_RL_JOB).map(fitting)


def minimal(**more: Any) -> Json:
    return {
        "model": {"source": "pvc://models/base"},
        "data": {"source": "reasoning-gym://number_sorting?seed=7"},
        "trainer": {"steps": 40},
        "checkpoint": {"storage": {"claim": "runs"}},
        **more,
    }


def made(spec: Json) -> Json:
    return job_file("solver", "rl", VerifiedRLJobSpec.model_validate(spec))


def as_read(file: Json) -> Job:
    """The job file as the trainer finds it: through JSON."""
    return Job.model_validate(json.loads(json.dumps(file, allow_nan=False)))


@drawn
@given(SPECS)
def test_what_the_api_accepts_the_trainer_accepts(spec: Json) -> None:
    as_read(made(spec))


SMALL = st.integers(1, 6)
"""So that some are multiples, some are equal, and some are more than others."""
SPLIT = st.none() | st.just("held-out")
TOGETHER: tuple[dict[str, st.SearchStrategy[Any]], ...] = (
    {"trainer.steps": SMALL, "trainer.warmupSteps": st.integers(0, 6)},
    {"trainer.promptsPerStep": SMALL, "trainer.updatesPerStep": SMALL},
    {
        "data.maxPromptTokens": SMALL,
        "rollout.maxTokens": SMALL,
        "model.contextLength": st.none() | st.integers(2, 12),
        "trainer.tokensPerMicroBatch": st.integers(2, 12),
    },
    {
        "rollout.resampleRounds": st.integers(0, 1),
        "algorithm.groupSize": st.integers(1, 2),
        "algorithm.name": part(VERIFIED_RL_JOB, "algorithm", "name"),
    },
    {"trainer.steps": SMALL, "checkpoint.every": SMALL, "evaluation.every": SMALL},
    {
        "data.source": st.none() | part(VERIFIED_RL_JOB, "data", "source"),
        "data.configMap": st.none() | st.just("items"),
        "data.split": SPLIT,
    },
    {
        "evaluation.suite": st.sampled_from(
            [{"configMap": "heldout"}, {"source": "reasoning-gym://number_sorting?seed=8"}]
        ),
        "evaluation.split": SPLIT,
    },
    {"verifiers": verifiers(unique=False)},
)
"""Fields that the trainer looks at together."""


@settings(drawn, max_examples=200)
@given(st.one_of([st.fixed_dictionaries(fields) for fields in TOGETHER]))
def test_the_api_has_every_rule_across_fields_that_the_trainer_has(changes: Json) -> None:
    spec = minimal(
        rollout={},
        algorithm={},
        trainer={"steps": 4},
        checkpoint={"every": 4, "storage": {"claim": "runs"}},
        evaluation={"every": 4, "suite": {"configMap": "heldout"}},
    )
    for path, value in changes.items():
        *where, name = path.split(".")
        (spec[where[0]] if where else spec)[name] = value
    try:
        file = made(spec)
    except ValidationError:
        return
    as_read(file)


@drawn
@given(
    st.data(),
    st.fixed_dictionaries(
        {},
        optional={
            "groupSize": st.integers(-1, 4097),
            "clip": st.lists(st.floats(-1, 1e7), max_size=3),
            "entropy": st.floats(-1, 11),
            "kl": st.fixed_dictionaries({"coef": st.floats(-1, 101)}),
            "importanceCorrection": st.fixed_dictionaries(
                {"type": st.sampled_from(["tis", "icepop", "none", "other"])},
                optional={name: st.floats(-1, 1e7) for name in ("cap", "alpha", "beta")},
            ),
        },
    ),
)
def test_the_algorithm_is_the_trainers(data: st.DataObject, wild: Json) -> None:
    """What one accepts the other accepts; and both then mean the same."""
    spec = {**data.draw(part(VERIFIED_RL_JOB, "algorithm")), **wild}
    if "importanceCorrection" in spec:
        # Here the API has a default that the job file has only one level up.
        spec["importanceCorrection"] = {"type": "tis", **spec["importanceCorrection"]}
    accepted = [_accepts(model, spec) for model in (algorithm.Algorithm, algorithms.Algorithm)]
    assert accepted[0] == accepted[1]
    if accepted[0]:
        written = algorithm.Algorithm.model_validate(spec).model_dump(exclude_none=True)
        theirs = algorithms.Algorithm
        assert theirs.model_validate(written) == theirs.model_validate(spec)


def _accepts(model: type[BaseModel], spec: Json) -> bool:
    try:
        model.model_validate(spec)
    except ValidationError:
        return False
    return True


PLACES = {"path", "engines", "directory", "suite", "source"}
"""What is where in the trainer's pod."""
OPERATORS: dict[type[BaseModel], set[str]] = {
    trainer.Rollout: {"waitSeconds", "attempts", "tokenEnv", "weights", "kernels"},
}
"""What is not for a user of the operator to say: it knows better, or the default is right."""


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (training.TrainedModel, trainer.Model),
        (training.Data, trainer.Data),
        (training.RolloutEngines, trainer.Rollout),
        (training.Trainer, trainer.Trainer),
        (verified_rl_job.CheckpointPolicy, trainer.Checkpoint),
        (training.Evaluation, trainer.Evaluation),
        (algorithm.Algorithm, algorithms.Algorithm),
        (algorithm.Kl, algorithms.Kl),
    ],
)
def test_the_names_and_defaults_are_the_trainers(
    ours: type[BaseModel], theirs: type[BaseModel]
) -> None:
    wanted = set(theirs.model_fields) - PLACES - OPERATORS.get(theirs, set())
    assert wanted <= set(ours.model_fields)
    for name in wanted:
        mine, other = ours.model_fields[name], theirs.model_fields[name]
        assert mine.is_required() == other.is_required(), name
        if other.default_factory is None and not isinstance(other.default, BaseModel):
            assert mine.default == other.default, name


def test_places_are_those_of_the_pods() -> None:
    file = made(
        minimal(
            data={"claim": "items", "path": "a/train.jsonl"},
            evaluation={"suite": {"configMap": "heldout", "key": "math.jsonl"}},
            rollout={"engines": 2},
            trainer={"steps": 40, "nodes": 2, "template": {"spec": {}}},
            progressDeadline="10m",
        )
    )
    job = as_read(file)
    assert job.model.path == Path("/models/base")
    assert job.data.source == "/etc/assay/data/a/train.jsonl"
    assert job.evaluation and job.evaluation.suite == "/etc/assay/suite/suite.jsonl"
    assert job.checkpoint.directory == Path("/checkpoints/solver")
    assert job.rollout.engines == (
        "http://solver-engine-0.solver-engines.rl.svc:30000",
        "http://solver-engine-1.solver-engines.rl.svc:30000",
    )
    assert job.status and (job.status.host, job.status.port) == ("0.0.0.0", 8080)
    assert job.status.progressSeconds == job.rollout.waitSeconds == 600


def test_items_in_a_config_map_lie_under_their_key() -> None:
    assert made(minimal(data={"configMap": "items"}))["data"]["source"] == (
        f"{jobfile.DATA_MOUNT}/data.jsonl"
    )
    named = minimal(data={"configMap": "items", "key": "train"})
    assert made(named)["data"]["source"] == f"{jobfile.DATA_MOUNT}/train"


def test_items_that_are_made_need_no_place() -> None:
    job = as_read(made(minimal()))
    assert job.data.source == "reasoning-gym://number_sorting?seed=7"
    assert jobfile.data_file(VerifiedRLJobSpec.model_validate(minimal()).data) is None


def test_verifiers_are_passed_on_as_they_are_written() -> None:
    written: list[Json] = [
        {"type": "math", "answer": "boxed"},
        {"type": "all", "name": "both", "weight": 2, "parts": [{"type": "math"}, {"type": "code"}]},
    ]
    file = made(minimal(verifiers=written))
    assert file["verifiers"] == [
        {"name": "math", "weight": 1.0, "type": "math", "answer": "boxed"},
        {"name": "both", "weight": 2.0, "type": "all", "parts": written[1]["parts"]},
    ]


def test_what_is_left_out_stays_the_trainers_default() -> None:
    file = made(minimal(algorithm={"loss": "gspo"}))
    assert "clip" not in file["algorithm"] and "average" not in file["algorithm"]
    job = as_read(file)
    assert job.algorithm == algorithms.Algorithm(loss="gspo")
    assert job.trainer == trainer.Trainer(steps=40)


def test_a_trainer_asks_for_kernels_where_engines_are_made_to_run_them() -> None:
    spec = VerifiedRLJobSpec.model_validate(minimal())
    assert as_read(job_file("solver", "rl", spec, fused=True)).rollout.kernels == "fused"
    assert as_read(job_file("solver", "rl", spec)).rollout.kernels == "any"


def test_the_same_spec_gives_the_same_file() -> None:
    assert json.dumps(made(minimal())) == json.dumps(made(minimal()))


def test_the_trainer_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(made(minimal())))
    assert load(path) == as_read(made(minimal()))
