"""Rollouts of new weights into running engines, each timed from its checkpoint's `Verified`.

Two folders by turns, each time under a new Checkpoint. The service is told to serve it before it is
verified, so that its rollout begins by itself at that moment. A run's own checkpoints become
verified by what the operator notes of them. So do these, though here the cluster's administrator,
whom the admission policy lets, writes the note: a Job that weighs them would start an engine of its
own on the cores that are measured. Both folders were weighed by such a Job before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from assay_operator.inference.observation import condition_of, parse_time
from assay_operator.inference.rollout_state import OVER
from assay_operator.plan import EVALUATION_ANNOTATION
from benchmarks.common import Json, say
from benchmarks.rollout_requests import Change
from tests.e2e.clients import reported
from tests.e2e.rollouts import ROLLOUT_SECONDS, SUITE, serve
from tests.e2e.watching import Story, Told
from tests.kube import Kube, wait_for

SERVICE = "live"
EVALUATED = {"verified": True, "score": 1.0, "items": 49, "suite": f"configmap/{SUITE}/suite.jsonl"}


@dataclass(frozen=True)
class Weights:
    """A folder on the claim `models`, and the digest that it is known by."""

    folder: str
    version: str


def trained(name: str, weights: Weights, number: int) -> Json:
    """A Checkpoint as a job makes one, not evaluated yet."""
    return {
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {
            "source": f"pvc://models/{weights.folder}",
            "digest": weights.version,
            "job": {
                "name": "bench-rollout",
                "uid": "bench-rollout",
                "step": number,
                "version": f"1.{number}",
            },
        },
    }


def verified_at(checkpoint: Json) -> float | None:
    """Since when a Checkpoint is verified, in seconds since the epoch; None while it is not."""
    found = condition_of(checkpoint, "Verified")
    if found is None or found["status"] != "True":
        return None
    time = parse_time(found["lastTransitionTime"])
    assert time
    return time.timestamp()


def brings(told: Told, name: str) -> bool:
    """Whether the rollout is the one to Checkpoint `name`."""
    return bool(told.rollout.get("to", {}).get("name") == name)


def change_of(told: Sequence[Told], name: str, began: float) -> Change:
    """The rollout to Checkpoint `name`, from every status up to its end.

    Raises:
        AssertionError: it did not come to what was wanted.
    """
    own = [each for each in told if brings(each, name)]
    last = own[-1]
    assert last.phase == "Done", last.rollout["message"]
    phases: dict[str, float] = {}
    for each in own[:-1]:
        phases.setdefault(each.phase, each.at)
    return Change(
        version=last.rollout["to"]["version"],
        began=began,
        passed=next(each.at for each in own if each.rollout.get("passed")),
        ended=last.at,
        phases=phases,
    )


def bring(kube: Kube, story: Story, weights: Weights, number: int) -> Change:
    """Brings weights to the service under a new Checkpoint, `round-NUMBER`.

    Args:
        kube: where it is.
        story: of the service.
        weights: that it shall serve.
        number: of this rollout.

    Raises:
        AssertionError: they did not come.
    """
    name, before = f"round-{number}", len(story.told)
    kube.apply(trained(name, weights, number))
    serve(kube, SERVICE, f"checkpoint://{name}")
    waits = "CheckpointNotVerified"
    wait_for(waits, lambda: kube.condition(SERVICE, "Target").get("reason") == waits, 60)
    note = f"{EVALUATION_ANNOTATION}={json.dumps(EVALUATED)}"
    kube.kubectl("annotate", "checkpoint", name, note)
    end = story.wait(
        lambda told: brings(told, name) and told.phase in OVER, before, ROLLOUT_SECONDS
    )
    began = verified_at(kube.get("checkpoint", name) or {})
    assert began, f"Checkpoint {name} is served and not verified"
    change = change_of(story.told[before : end + 1], name, began)
    assert change.version == weights.version
    assert reported(kube, SERVICE) == {weights.version}
    told = ", ".join(f"{phase} {took:.1f}" for phase, took in change.durations().items())
    say(f"{name} ({weights.folder}): {change.seconds:.1f} s ({told})")
    return change
