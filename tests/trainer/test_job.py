"""The job file: what may stand in it, what follows from it, and how it says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from assay_trainer.job import Job, JobError, load
from assay_trainer.settings import generator
from assay_verifiers.config import MathVerifier, WeightedVerifier
from tests.trainer.jobs import GONE, write

EXAMPLE = Path(__file__).parents[2] / "examples" / "rl-job.json"


def problems(path: Path) -> list[str]:
    with pytest.raises(JobError) as caught:
        load(path)
    assert str(caught.value) == "\n".join(f"{path}: {line}" for line in caught.value.problems)
    return list(caught.value.problems)


def test_the_shortest_job_needs_a_model_items_engines_steps_and_a_place(tmp_path: Path) -> None:
    job = load(write(tmp_path))
    assert (job.algorithm.name, job.algorithm.groupSize, job.algorithm.clip) == (
        "grpo",
        16,
        (0.2, 0.28),
    )
    for field in ("model", "data", "rollout", "trainer", "checkpoint"):
        assert problems(write(tmp_path, {field: GONE})) == [f"{field}: Field required"]


def test_the_example_shows_the_defaults_that_it_does_not_change() -> None:
    job = load(EXAMPLE)
    assert job.verifiers[0].name == "sorted"
    assert job.longest == 1024


def models(model: type[BaseModel] = Job) -> Iterator[type[BaseModel]]:
    yield model
    pending = [field.annotation for field in model.model_fields.values()]
    while pending:
        found = pending.pop()
        pending += list(getattr(found, "__args__", ()))
        if isinstance(found, type) and issubclass(found, BaseModel):
            yield from models(found) if found.__module__.startswith("assay_trainer") else ()


def test_every_field_says_what_it_does() -> None:
    """Parts say it once, in their own docstring."""
    seen = {*models()}
    assert {"Job", "Algorithm", "Kl", "Tis", "Weights"} <= {model.__name__ for model in seen}
    plain = {"type", "verifier"}  # what they say is in their model's docstring
    for model in seen:
        assert model.__doc__, model
        for name, field in model.model_fields.items():
            part = any(
                m in seen for m in (field.annotation, *getattr(field.annotation, "__args__", ()))
            )
            assert field.description or part or name in plain, f"{model.__name__}.{name}"


def test_what_a_file_says_is_what_another_file_written_from_it_says(tmp_path: Path) -> None:
    job = load(EXAMPLE)
    again = tmp_path / "job.json"
    again.write_text(job.model_dump_json())
    assert load(again) == job


def test_a_job_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(write(tmp_path)).seed = 1


# Files that cannot be read as JSON.


def test_a_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.json") == ["cannot be read: No such file or directory"]
    assert problems(tmp_path) == ["cannot be read: Is a directory"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            b'{\n  "seed": 1,\n  "model" {}\n}',
            "not JSON: Expecting ':' delimiter at line 3 column 11",
        ),
        (b"", "not JSON: Expecting value at column 1"),
        (b"[]", "not a JSON object"),
        (b'{"seed": NaN}', "not JSON: NaN is not a JSON number"),
        (b'{"seed": 1,\n "seed": 2}', "not JSON: the key 'seed' stands twice in an object"),
        (b'{"seed": "\xff"}', "not UTF-8 at byte 11"),
        (b"[" * 100_000, "nested too deeply: 100000 levels, 200 at most"),
    ],
)
def test_broken_json_is_told_by_its_place(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "job.json"
    path.write_bytes(text)
    assert problems(path) == [said]


# Fields that are wrong.


@pytest.mark.parametrize(
    "field",
    [
        "stepz",
        "model.revision",
        "data.shufle",
        "algorithm.gamma",
        "algorithm.kl.target",
        "rollout.topP",
        "rollout.weights.compress",
        "trainer.nodes",
        "checkpoint.storage",
        "evaluation.gate",
        "status.token",
    ],
)
def test_an_unknown_key_is_refused_by_its_path(tmp_path: Path, field: str) -> None:
    needed = {"evaluation.suite": "held.jsonl"} if field.startswith("evaluation") else {}
    said = problems(write(tmp_path, {**needed, field: 1}))
    assert said == [f"{field}: Extra inputs are not permitted"]


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"algorithm.groupSize": 1}, "algorithm.groupSize: grpo compares completions of a prompt"),
    ({"algorithm": {"name": "rloo", "groupSize": 1}}, "algorithm.groupSize: rloo compares"),
    ({"algorithm.clip": [0.0, 0.2]}, "algorithm.clip: the lower bound must be in (0, 1]"),
    ({"algorithm.clip": [1.5, 0.2]}, "algorithm.clip: the lower bound must be in (0, 1]"),
    ({"algorithm.clip": [0.2, 0]}, "algorithm.clip: the upper bound"),
    ({"algorithm.clip": [0.2]}, "algorithm.clip.1: Field required"),
    ({"algorithm.kl": {"coef": -1}}, "algorithm.kl.coef: Input should be greater"),
    ({"algorithm.kl": {"estimator": "k4"}}, "algorithm.kl.estimator: Input should be 'k1'"),
    ({"algorithm.importanceCorrection": "mis"}, "algorithm.importanceCorrection: Input tag 'mis'"),
    (
        {"algorithm.importanceCorrection": {"type": "tis", "cap": 0.5}},
        "algorithm.importanceCorrection.tis.cap: Input should be greater",
    ),
    (
        {"algorithm.importanceCorrection": {"type": "icepop", "alpha": 2}},
        "algorithm.importanceCorrection.icepop.alpha: Input should be less",
    ),
    ({"model.contextLength": 1500}, "model.contextLength: 1500 tokens are too few"),
    (
        {"trainer.tokensPerMicroBatch": 1535},
        "trainer.tokensPerMicroBatch: 1535 tokens are too few: data.maxPromptTokens 1024 and "
        "rollout.maxTokens 512 make 1536",
    ),
    ({"trainer.steps": 0}, "trainer.steps: Input should be greater"),
    ({"trainer.steps": 10}, "checkpoint.every: 20, but the run has only 10 steps"),
    ({"trainer.warmupSteps": 101}, "trainer.warmupSteps: longer than the run, which has 100"),
    ({"trainer.updatesPerStep": 3}, "trainer.updatesPerStep: 64 prompts cannot be shared out"),
    ({"trainer.betas": [0.9, 1.0]}, "trainer.betas.1: Input should be less"),
    ({"trainer.learningRate": 0}, "trainer.learningRate: Input should be greater"),
    ({"rollout.engines": []}, "rollout.engines: Tuple should have at least 1 item"),
    ({"rollout.engines": ["engine:30000"]}, "rollout.engines.0: String should match"),
    ({"rollout.engines": ["http://a:1", "http://a:1/"]}, "rollout.engines: an engine stands twice"),
    ({"rollout.maxStaleness": 2}, "rollout.maxStaleness: Input should be 0 or 1"),
    ({"rollout.temperature": 0}, "rollout.temperature: Input should be greater"),
    (
        {"rollout.resampleRounds": 1, "algorithm": {"name": "reinforce++", "groupSize": 1}},
        "rollout.resampleRounds: a group of one never has variance",
    ),
    (
        {"rollout.weights": {"transfer": "nccl"}},
        "rollout.weights.transfer: Input should be 'disk' or 'broadcast'",
    ),
    ({"rollout.tokenEnv": "MY TOKEN"}, "rollout.tokenEnv: String should match"),
    ({"checkpoint.every": 101}, "checkpoint.every: 101, but the run has only 100 steps"),
    (
        {"evaluation": {"suite": "h.jsonl", "every": 101}},
        "evaluation.every: 101, but the run has 100 steps",
    ),
    (
        {"evaluation": {"suite": "h.jsonl", "every": 15}},
        "evaluation.every: neither 15 nor checkpoint.every 20 is a multiple",
    ),
    ({"evaluation": {"suite": "h.jsonl", "minScore": 60}}, "evaluation.minScore: Input should be"),
    ({"data.source": "s3://bucket/items"}, "data.source: 's3://bucket/items' is neither"),
    (
        {"data": {"source": "reasoning-gym://countdown", "split": "train"}},
        "data.split: generated items have no splits",
    ),
    ({"seed": -1}, "seed: Input should be greater"),
    ({"verifiers": [{"type": "maths"}]}, "verifiers.0: unknown verifier type 'maths'"),
    ({"verifiers": [{"name": "a"}]}, "verifiers.0: a verifier is an object with a type"),
    ({"verifiers": ["math"]}, "verifiers.0: Input should be a valid dictionary"),
    ({"verifiers": [{"type": "math", "timeout": 0}]}, "verifiers.0.timeout: Input should be"),
    ({"verifiers": [{"type": "math", "weight": 0}]}, "verifiers.0.weight: Input should be"),
    (
        {"verifiers": [{"type": "all", "parts": [{"type": "regex", "patern": "a"}]}]},
        "verifiers.0.parts.0.patern: Extra inputs",
    ),
    ({"verifiers": [{"type": "math"}, {"type": "math"}]}, "verifiers: two are called 'math'"),
]


@pytest.mark.parametrize(("changes", "said"), IMPOSSIBLE, ids=[said for _, said in IMPOSSIBLE])
def test_what_cannot_work_is_refused_by_its_path(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    (found,) = problems(write(tmp_path, changes))
    assert found.startswith(said)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    changes = {"seed": -1, "algorithm": {"loss": "ppo"}, "trainer.steps": "many", "extra": 1}
    said = problems(write(tmp_path, changes))
    assert [line.partition(":")[0] for line in said] == [
        "algorithm.loss",
        "trainer.steps",
        "seed",
        "extra",
    ]
    said = problems(write(tmp_path, {"trainer.tokensPerMicroBatch": 2, "checkpoint.every": 999}))
    assert [line.partition(":")[0] for line in said] == [
        "trainer.tokensPerMicroBatch",
        "checkpoint.every",
    ]


# What follows from a job.


@pytest.mark.parametrize(
    ("loss", "clip", "average"),
    [
        ("clip", (0.2, 0.28), "tokens"),
        ("gspo", (3e-4, 4e-4), "sequences"),
        ("cispo", (1, 4), "tokens"),
    ],
)
def test_bounds_and_average_default_to_the_losss_own(
    tmp_path: Path, loss: str, clip: tuple[float, float], average: str
) -> None:
    algorithm = load(write(tmp_path, {"algorithm.loss": loss})).algorithm
    assert (algorithm.clip, algorithm.average) == (clip, average)
    given = {"algorithm": {"loss": loss, "clip": [0.5, 0.5], "average": "sequences"}}
    algorithm = load(write(tmp_path, given)).algorithm
    assert (algorithm.clip, algorithm.average) == ((0.5, 0.5), "sequences")


def test_a_correction_may_be_given_by_its_name_alone(tmp_path: Path) -> None:
    for value in ("icepop", {"type": "icepop"}):
        found = load(write(tmp_path, {"algorithm.importanceCorrection": value})).algorithm
        assert found.importanceCorrection.model_dump() == {
            "type": "icepop",
            "alpha": 0.5,
            "beta": 5.0,
        }


def test_one_verifier_is_the_judge_and_several_are_weighed(tmp_path: Path) -> None:
    assert load(write(tmp_path)).verifier is None
    math = {"name": "answer", "type": "math", "weight": 3, "timeout": 2}
    assert load(write(tmp_path, {"verifiers": [math]})).verifier == MathVerifier(timeout=2)
    form = {"type": "regex", "pattern": "^#"}
    verifier = load(write(tmp_path, {"verifiers": [math, form]})).verifier
    assert isinstance(verifier, WeightedVerifier)
    assert [(part.name, part.weight) for part in verifier.parts] == [("answer", 3), ("regex", 1)]


def test_paths_are_relative_to_the_job_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    job = load(write(tmp_path, {"checkpoint.directory": "/else/where"}))
    assert job.model.path == tmp_path / "model"
    assert job.data.source == str(tmp_path / "items.jsonl")
    assert job.checkpoint.directory == Path("/else/where")
    monkeypatch.chdir(tmp_path)
    assert load(Path("job.json")) == job


def test_a_generator_is_a_name_and_parameters() -> None:
    made = generator('reasoning-gym://number_sorting?seed=7&size=100&kind=up&only=["a",1]')
    assert made and made.dataset == "number_sorting"
    assert made.parameters == {"seed": 7, "size": 100, "kind": "up", "only": ["a", 1]}
    plain = generator("reasoning-gym://countdown")
    assert plain and not plain.parameters
    assert generator("folder/items.jsonl") is None


@pytest.mark.parametrize(
    "source", ["reasoning-gym://", "reasoning-gym://a/b", "reasoning-gym://a?seed", "gym://a"]
)
def test_a_generator_that_says_nothing_clear_is_refused(source: str) -> None:
    with pytest.raises(ValueError):
        generator(source)
    with pytest.raises(ValueError, match="twice"):
        generator("reasoning-gym://a?seed=1&seed=2")


def test_a_job_in_memory_needs_no_folder() -> None:
    job = Job.model_validate(json.loads(EXAMPLE.read_text()))
    assert job.model.path == Path("solver-base")
