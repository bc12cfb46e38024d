"""What is wrong with a run, told from its metrics with the reason and the remedy.

`alarms` is a pure function of what was measured, so that a run's file can be judged again later.
Some alarms stop the run, since every further step would cost and bring nothing; others only warn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from assay_trainer.job import Job
from assay_trainer.metrics import Metrics
from assay_verifiers.contract import STATUSES

Kind = Literal["not-finite", "masked", "no-variance", "entropy", "mismatch", "ratio", "truncated"]

FINITE = ("loss", "policy", "kl", "entropy", "grad/norm", "reward/mean", "mismatch/mean")
IN_A_ROW = 3
"""A step may be bad by chance; so many in a row are not."""
QUIET_STEPS, DEAD_STEPS = 5, 20
"""Steps without anything to learn before a warning, and before the end."""
TRUNCATED = 0.5
MASKED = 0.5
RATIO = (2.0, 10.0)
"""The mean of new / old is near 1 in expectation, as old drew the tokens: a warning, the end."""
ENTROPY, ENTROPY_SHARE = 0.02, 0.1
"""Nats a token, and of the first steps': both must be fallen below. The first alone would blame
short answers without any freedom in them, the second a model that was very undecided at first."""
GOOD = 0.9
"""With a reward like this a sure model is what was wanted."""
MISMATCH = {"exact": 1e-9, "fp32": 1e-3, "bf16": 0.1}
"""Nats a token, for weights of one version. The rounding of fp32 makes about 1e-6 and that of bf16
about 1e-2. A step's learning, which maxStaleness 1 adds, is seldom more than the latter either.
Between deterministic engines and a deterministic trainer it is 0; the bound lets pass a bit here
and there, and no more."""
MISMATCH_STOP = 1.0
"""A factor of e at every token: that is no rounding, but another model or another temperature."""


@dataclass(frozen=True)
class Alarm:
    """Something that a person should know.

    Attributes:
        kind: what it is about; at most one alarm of each is told at a time.
        stop: whether going on makes no sense.
        reason: what was seen.
        remedy: what to do.
    """

    kind: Kind
    stop: bool
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}"


def alarms(history: Sequence[Metrics], job: Job) -> list[Alarm]:
    """What is wrong after the last step of the history; those that stop first.

    Args:
        history: of all steps so far, in order. Lines that hold an evaluation only count as no step.
        job: what was asked for.
    """
    steps = [line for line in history if "loss" in line]
    if not steps:
        return []
    found = [alarm for rule in RULES for alarm in rule(steps, job)]
    return sorted(found, key=lambda alarm: not alarm.stop)


def _not_finite(steps: Sequence[Metrics], job: Job) -> Iterator[Alarm]:
    last = steps[-1]
    # Where nothing could be judged there is no mean reward: that is another alarm's.
    nothing = last.get("samples/masked") == 1
    names = [
        f"{name} is {last[name]}"
        for name in FINITE
        if not math.isfinite(last.get(name, 0.0)) and not (nothing and name == "reward/mean")
    ]
    if names:
        yield Alarm(
            "not-finite",
            True,
            f"step {last['step']:.0f}: {', '.join(names)}",
            f"Go on from the checkpoint before with a lower trainer.learningRate (it is "
            f"{job.trainer.learningRate:g}) or a longer trainer.warmupSteps; if it comes back at "
            "the same step, look at that step's completions",
        )


def _masked(steps: Sequence[Metrics], job: Job) -> Iterator[Alarm]:
    shares = [line.get("samples/masked", 0.0) for line in steps[-IN_A_ROW:]]
    if shares[-1] <= MASKED:
        return
    remedy = "Look at the verifiers (timeout: give them more time or workers; error: their detail)"
    if job.rollout.truncated == "mask":
        remedy += (
            f"; completions cut off at {job.rollout.maxTokens} tokens are masked too, by "
            "rollout.truncated: allow more tokens with rollout.maxTokens"
        )
    yield Alarm(
        "masked",
        len(shares) == IN_A_ROW and min(shares) == 1,
        f"{shares[-1]:.0%} of the samples could not be judged{_statuses(steps[-1])}",
        remedy,
    )


def _no_variance(steps: Sequence[Metrics], job: Job) -> Iterator[Alarm]:
    silent = 0
    for line in reversed(steps):
        if not _nothing_to_learn(line, job):
            break
        silent += 1
    if silent < QUIET_STEPS:
        return
    reward = steps[-1].get("reward/mean", math.nan)
    if reward >= 1 - 1e-6:
        # Not an end: what is solved shall be weighed and kept as the job says.
        yield Alarm(
            "no-variance",
            False,
            f"every completion of the last {silent} steps was right: nothing is left to learn",
            "Take harder items, or end the run",
        )
        return
    unjudged = steps[-1].get("samples/masked") == 1
    if unjudged:
        return
    yield Alarm(
        "no-variance",
        silent >= DEAD_STEPS,
        f"for {silent} steps the reward was the same within every group, at a mean of "
        f"{reward:.3g}, so there was nothing to learn{_statuses(steps[-1])}",
        "Take easier items or a model that gets some of them right (a supervised warm-up), give "
        "partial credit, draw larger groups (algorithm.groupSize) or replace such groups "
        "(rollout.resampleRounds); unparsed: the verifier expects another form of answer",
    )


def _nothing_to_learn(line: Metrics, job: Job) -> bool:
    if job.algorithm.name == "reinforce++":
        # Its baseline is the whole batch's. Rewards lie in [0, 1], so a mean at one end says that
        # all are the same.
        return line.get("reward/mean", 0.5) in (0.0, 1.0)
    return line.get("groups/uniform", 0.0) + line.get("groups/few", 0.0) >= 1 - 1e-6


def _entropy(steps: Sequence[Metrics], job: Job) -> Iterator[Alarm]:
    values = [line["entropy"] for line in steps if math.isfinite(line.get("entropy", math.nan))]
    if len(values) < 2 * QUIET_STEPS:
        return
    first = statistics.median(values[:QUIET_STEPS])
    now = statistics.median(values[-QUIET_STEPS:])
    reward = statistics.fmean(line.get("reward/mean", 0.0) for line in steps[-QUIET_STEPS:])
    if now < min(ENTROPY, ENTROPY_SHARE * first) and not reward >= GOOD:
        yield Alarm(
            "entropy",
            False,
            f"the entropy fell from {first:.3g} to {now:.3g} nats a token while the reward is "
            f"only {reward:.3g}: the model has stopped trying other answers",
            "Raise the upper bound of algorithm.clip, set algorithm.entropy (such as 0.001) or "
            "algorithm.kl.coef, or lower trainer.learningRate; go on from an earlier checkpoint",
        )


def mismatch_bound(job: Job) -> float:
    """How far engine and trainer may differ, as the mean of |log-prob difference| in nats."""
    if job.rollout.maxStaleness:
        return MISMATCH["bf16"]
    return MISMATCH["exact" if job.trainer.deterministic else job.trainer.precision]


def _mismatch(steps: Sequence[Metrics], job: Job) -> Iterator[Alarm]:
    values = [line.get("mismatch/mean", 0.0) for line in steps[-IN_A_ROW:]]
    bound = mismatch_bound(job)
    if len(values) < IN_A_ROW or min(values) <= bound:
        return
    yield Alarm(
        "mismatch",
        min(values) > MISMATCH_STOP,
        f"engine and trainer differ by {values[-1]:.3g} nats a token (mismatch/mean), expected is "
        f"at most {bound:g}",
        "The engines must serve this job's model with the weights of this run and without "
        "quantisation, in trainer.precision, and in deterministic mode where trainer.deterministic "
        "is true; rollout.temperature must reach them; "
        "algorithm.importanceCorrection icepop leaves the worst tokens out",
    )


def _ratio(steps: Sequence[Metrics], job: Job) -> Iterator[Alarm]:
    ratio = steps[-1].get("ratio/mean", 1.0)
    warn, stop = RATIO
    if ratio > warn or not math.isfinite(ratio):
        yield Alarm(
            "ratio",
            not ratio <= stop,
            f"the updates of one batch moved the policy so far that the mean ratio is {ratio:.3g} "
            "instead of about 1",
            f"Lower trainer.learningRate (it is {job.trainer.learningRate:g}) or "
            f"trainer.updatesPerStep (it is {job.trainer.updatesPerStep}), or narrow "
            "algorithm.clip",
        )


def _truncated(steps: Sequence[Metrics], job: Job) -> Iterator[Alarm]:
    shares = [line.get("samples/truncated", 0.0) for line in steps[-IN_A_ROW:]]
    if len(shares) == IN_A_ROW and min(shares) > TRUNCATED:
        yield Alarm(
            "truncated",
            False,
            f"{shares[-1]:.0%} of the completions were cut off at {job.rollout.maxTokens} tokens",
            "Allow more with rollout.maxTokens, or see whether the model ever ends its answers "
            "(its end-of-text token, its chat template)",
        )


RULES: tuple[Callable[[Sequence[Metrics], Job], Iterator[Alarm]], ...] = (
    _not_finite,
    _masked,
    _no_variance,
    _entropy,
    _mismatch,
    _ratio,
    _truncated,
)


def _statuses(line: Metrics) -> str:
    """The verifiers' statuses of a step, where they were counted: ` (ok 3, unparsed 61)`."""
    counts = {status: line.get(f"status/{status}", 0.0) for status in STATUSES}
    told = ", ".join(f"{status} {count:.0f}" for status, count in counts.items() if count)
    return f" ({told})" if told else ""
