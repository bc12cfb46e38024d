"""What a job would do, what is doubtful about it, what is missing here: before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay_trainer.algorithms.settings import IcePop, Tis, Uncorrected
from assay_trainer.job import Job
from assay_trainer.settings import Generator, generator
from assay_verifiers.config import ReasoningGymVerifier, VerifierModel
from assay_verifiers.contract import Unavailable
from assay_verifiers.interrupts import run_until_interrupted
from assay_verifiers.jsonlines import SuiteError
from assay_verifiers.registry import Bench, soft
from assay_verifiers.suites import Suite, load_suite, shared_items

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Items:
    """What a source holds: a suite that was read, or a generator that was tried."""

    suite: Suite | None = None
    generator: Generator | None = None

    def __str__(self) -> str:
        if self.suite:
            return f"{len(self.suite.items)} items of {self.suite.name}"
        assert self.generator
        given = ", ".join(f"{key}={value}" for key, value in self.generator.parameters.items())
        return f"made by reasoning-gym: {self.generator.dataset}" + (f" ({given})" if given else "")


def summary(job: Job) -> list[tuple[str, str]]:
    """What will happen, as pairs of a word and a sentence. Of the job file alone."""
    algorithm, rollout, trainer = job.algorithm, job.rollout, job.trainer
    samples = trainer.promptsPerStep * algorithm.groupSize
    low, high = algorithm.clip
    updates = f"{trainer.updatesPerStep} update{'s' if trainer.updatesPerStep > 1 else ''}"
    fall = "" if trainer.decay == "constant" else f", {trainer.decay} decay"
    judges = ", ".join(f"{v.name} ({v.verifier.type}, weight {v.weight:g})" for v in job.verifiers)
    lines = [
        ("model", f"{job.model.path}, in {trainer.precision} with fp32 master weights"),
        ("prompts", f"{job.data.source}, up to {job.data.maxPromptTokens} tokens each"),
        ("judged by", judges or "the verifier that each item names"),
        (
            "each step",
            f"{trainer.promptsPerStep} prompts x {algorithm.groupSize} completions = {samples} "
            f"samples of up to {rollout.maxTokens} tokens, temperature {rollout.temperature:g}",
        ),
        ("engines", f"{len(rollout.engines)}, weights by {rollout.weights.transfer}"),
        (
            "advantage",
            f"{algorithm.name}; loss {algorithm.loss}, ratio in [{1 - low:g}, {1 + high:g}], every "
            f"{'token' if algorithm.average == 'tokens' else 'sequence'} alike",
        ),
        ("corrected", _correction(algorithm.importanceCorrection)),
        (
            "learning",
            f"{trainer.steps} steps, {updates} each, rate {trainer.learningRate:g}{fall}, at most "
            f"{trainer.steps * samples * job.longest:,} tokens in all",
        ),
        (
            "kept",
            f"every {job.checkpoint.every} steps under {job.checkpoint.directory}: the newest "
            f"{job.checkpoint.keep} and the best",
        ),
    ]
    if job.evaluation:
        more = f" and {job.evaluation.samples} samples an item" if job.evaluation.samples else ""
        bar = job.evaluation.minScore
        verified = "" if bar is None else f"; verified from a score of {bar:g}"
        lines.append(
            (
                "weighed",
                f"every {job.evaluation.every} steps on {job.evaluation.suite}, greedily{more}"
                f"{verified}",
            )
        )
    return lines


def _correction(settings: Tis | IcePop | Uncorrected) -> str:
    match settings:
        case Tis():
            return f"tis: tokens weighted by trainer over engine, at most {settings.cap:g}"
        case IcePop():
            return f"icepop: weights in [{settings.alpha:g}, {settings.beta:g}], others left out"
        case Uncorrected():
            return "not at all"


def warnings(job: Job) -> list[str]:
    """What is allowed and seldom meant. Of the job file alone."""
    found = []
    if job.verifier and soft(job.verifier):
        found.append(
            "verifiers: all are soft (an opinion, no proof): the model will learn to please them. "
            "Add one that can prove, or watch the samples"
        )
    if job.evaluation is None:
        found.append("evaluation: there is none, so no checkpoint will count as verified")
    elif _made_alike(job, job.data.source, job.evaluation.suite):
        found.append(
            "evaluation.suite: it makes the items of data.source: the score will be too good"
        )
    settings = job.algorithm
    if job.rollout.maxStaleness and isinstance(settings.importanceCorrection, Uncorrected):
        found.append(
            "algorithm.importanceCorrection: none, though with rollout.maxStaleness 1 the weights "
            "that draw are not those that learn"
        )
    if settings.kl.coef and settings.kl.estimator == "k1":
        found.append(
            "algorithm.kl.estimator: the gradient of k1 is 0 on average, so it holds nothing back: "
            "use k2 or k3"
        )
    if "clip" in settings.model_fields_set and job.trainer.updatesPerStep == 1:
        found.append(
            "algorithm.clip: has no effect with trainer.updatesPerStep 1: every ratio is 1 then"
        )
    return found


def _made_alike(job: Job, *sources: str) -> bool:
    """Whether generators would make the same items. Suites are compared when they are read."""
    made = [generator(source) for source in sources]
    keys = [(one.dataset, one.parameters.get("seed", job.seed)) for one in made if one]
    return len(keys) == len(sources) and len(set(keys)) == 1


def items(source: str, split: str | None, verifier: VerifierModel | None) -> Items:
    """Reads a suite, or has one item made.

    Raises:
        ValueError: the suite is wrong, there is no such split, task or parameter.
        OSError: the suite cannot be read.
    """
    made = generator(source)
    if made is None:
        suite = load_suite(Path(source), verifier)
        return Items(suite=suite.split(split) if split is not None else suite)
    try:
        # Seconds of imports, so only where a job wants it.
        import reasoning_gym  # noqa: PLC0415

        reasoning_gym.create_dataset(made.dataset, **made.parameters)[0]
    except ImportError as reason:
        raise ValueError(f"{source}: reasoning-gym is not installed: {reason}") from reason
    except Exception as reason:
        raise ValueError(f"{source}: reasoning-gym refuses it: {reason}") from reason
    return Items(generator=made)


def here(job: Job) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """What is found on this machine: more of the summary, more warnings, and what is wrong.

    Raises:
        Interrupted: a signal came.
    """
    lines: list[tuple[str, str]] = []
    doubts: list[str] = []
    wrong = list(_model_problems(job))
    sources = {"data.source": (job.data.source, job.data.split)}
    if job.evaluation:
        sources["evaluation.suite"] = (job.evaluation.suite, job.evaluation.split)
    found: dict[str, Items] = {}
    for field, (source, split) in sources.items():
        try:
            found[field] = items(source, split, job.verifier)
        except SuiteError as reason:
            wrong += [f"{field}: {problem}" for problem in reason.problems]
        except (ValueError, OSError) as reason:
            wrong.append(f"{field}: {reason}")
        else:
            lines.append((field, str(found[field])))
    data, evaluation = found.get("data.source", Items()), found.get("evaluation.suite", Items())
    if suite := data.suite:
        if len(suite.items) < job.trainer.promptsPerStep:
            doubts.append(
                f"data.source: {len(suite.items)} items are fewer than trainer.promptsPerStep, so "
                "an item comes more than once in a step"
            )
        if not job.verifier and suite.weak == len(suite.items):
            doubts.append("data.source: all items are judged by soft verifiers (an opinion)")
        if not job.data.chatTemplate and any(item.messages for item in suite.items):
            wrong.append("data.chatTemplate: false, but items have messages, which need it")
        if evaluation.suite and (shared := shared_items(suite, evaluation.suite)):
            doubts.append(
                f"evaluation.suite: {len(shared)} of its items are trained on too, such as "
                f"{shared[0][1]}: the score will be too good"
            )
    wrong += run_until_interrupted(_unmade(_judges(job, data, evaluation)))
    wrong += _unwritable(job)
    token = job.rollout.tokenEnv
    if token is not None and not os.environ.get(token):
        wrong.append(f"rollout.tokenEnv: the environment variable {token} is not set")
    return lines, doubts, wrong


def _judges(job: Job, *sources: Items) -> list[VerifierModel]:
    if job.verifier:
        return [job.verifier]
    found: list[VerifierModel] = []
    for source in sources:
        if source.generator:
            found.append(ReasoningGymVerifier())
        found += [item.verifier for item in source.suite.items] if source.suite else []
    return found


async def _unmade(judges: list[VerifierModel]) -> list[str]:
    wrong: dict[str, None] = {}
    async with Bench(1) as bench:
        for judge in judges:
            try:
                bench.verifier(judge)
            except (Unavailable, ValueError) as reason:
                wrong[f"verifiers: {judge.type}: {reason}"] = None
    return list(wrong)[:20]


def _model_problems(job: Job) -> Iterator[str]:
    folder = job.model.path
    if not folder.is_dir():
        yield f"model.path: {folder} is not a folder"
        return
    if not any(folder.glob("*.safetensors")):
        yield f"model.path: {folder} holds no *.safetensors"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield f"model.path: {folder} holds no tokenizer ({', '.join(TOKENIZERS)})"
    elif job.data.chatTemplate and not _has_template(folder):
        yield (
            f"model.path: the tokenizer in {folder} has no chat template: add one, or set "
            "data.chatTemplate to false"
        )
    config = _json(folder / "config.json")
    if not isinstance(config, dict):
        yield f"model.path: {folder / 'config.json'} is missing or not JSON"
        return
    context = config.get("max_position_embeddings")
    given = job.model.contextLength
    if not isinstance(context, int):
        return
    if given and given > context:
        yield f"model.contextLength: {given}, but the model's context is {context} tokens"
    if job.longest > context:
        yield (
            f"model.path: the model's context is {context} tokens; data.maxPromptTokens and "
            f"rollout.maxTokens make {job.longest}"
        )


def _has_template(folder: Path) -> bool:
    config = _json(folder / "tokenizer_config.json")
    named = isinstance(config, dict) and bool(config.get("chat_template"))
    return named or any(folder.glob("chat_template.*"))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _unwritable(job: Job) -> Iterator[str]:
    folders = {"checkpoint.directory": job.checkpoint.directory}
    if job.rollout.weights.directory:
        folders["rollout.weights.directory"] = job.rollout.weights.directory
    for field, folder in folders.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            yield f"{field}: {there} is not a folder"
        elif not os.access(there, os.W_OK):
            yield f"{field}: {there} cannot be written to"
