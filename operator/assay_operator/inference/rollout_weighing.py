"""The phases in which a candidate is weighed: its files inspected, its answers compared. Pure."""

from __future__ import annotations

from dataclasses import replace

from assay_operator.inference.results import JobResult
from assay_operator.inference.rollout_ends import fail, identifier
from assay_operator.inference.rollout_replicas import available, load_again
from assay_operator.inference.rollout_state import Phase, Rollout
from assay_operator.inference.rollout_words import sentences, short, who
from assay_operator.inference.rollout_world import Diary, JobOrder, World
from assay_operator.plan import Json

INSPECT_SECONDS = 3600.0
"""Longer than any inspection: its Job has a deadline of its own."""
GATE_SLACK_SECONDS = 600.0
INCUMBENT_SECONDS = 120.0
"""How long the gate waits for somebody to compare with, where there should be one."""
MAX_BROKEN = 2
"""Jobs of one kind in a row that may end without a verdict and are made again."""
_CUT = "..."


def enter(rollout: Rollout, world: World, phase: Phase) -> Rollout:
    """The rollout in another phase of weighing."""
    return replace(rollout, phase=phase, since=world.now, job=None, broken=0)


def needs_gate(rollout: Rollout, world: World) -> bool:
    """Whether the target has yet to pass the gate."""
    return world.policy.gate and world.gated and not rollout.passed


def after_candidate(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """Where it goes once there is an engine with the candidate, or none is to be had in place."""
    if needs_gate(rollout, world):
        return enter(rollout, world, "Gating")
    if rollout.strategy == "Recreate":
        return recreated(rollout, world, diary)
    return enter(rollout, world, "Holding")


def by_recreating(rollout: Rollout, world: World, diary: Diary, why: str) -> Rollout:
    """The rollout by new pods: no running engine is touched before the gate has passed."""
    diary.say("Recreate", sentences(f"{who(rollout.target)} comes with new pods: {why}"))
    changed = replace(rollout, strategy="Recreate", surge=False, canary=None)
    return after_candidate(changed, world, diary)


def recreated(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """The commit of a rollout by new pods."""
    template = rollout.target.version
    if template == rollout.home:
        # The Deployment rolls only where the template is another one.
        template = f"{template}-{rollout.id}"
    diary.say("RolloutCommitted", f"New pods come up with {who(rollout.target)}.")
    entered = enter(rollout, world, "Recreating")
    return replace(entered, committed=True, template=template, progress=world.now)


def inspecting(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """The candidate's folder beside that of what is served."""
    if rollout.job is None:
        return _with_job(rollout, JobOrder("inspect", ""))
    result = world.results.get(rollout.job.id)
    if result is not None and result.verdict == "pass":
        return _inspected(rollout, world, result, diary)
    if result is None:
        return _awaited(rollout, world, diary, rollout.job, INSPECT_SECONDS)
    if result.verdict == "fail":
        return fail(rollout, world, diary, "InspectionFailed", result.message, blame=True)
    return _broken(rollout, world, diary, "InspectionBroken", result.message)


def _inspected(rollout: Rollout, world: World, result: JobResult, diary: Diary) -> Rollout:
    if any(each.version in rollout.older for each in world.live.values()):
        # The target is compared with one version, not with a mixture of two.
        return rollout
    if why := _not_in_place(rollout, world, result):
        return by_recreating(rollout, world, diary, why)
    diary.say("InspectionPassed", sentences(f"{who(rollout.target)}: {result.message}"))
    return enter(rollout, world, "Canary")


def gating(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """The candidate, on the canary or on an engine of the gate's own, beside what is served."""
    if lost := _canary_lost(rollout, world, diary):
        return lost
    if rollout.job is None:
        return _ordered(rollout, world, diary)
    result = world.results.get(rollout.job.id)
    if result is None:
        most = world.policy.gate_seconds + GATE_SLACK_SECONDS
        return _awaited(rollout, world, diary, rollout.job, most)
    return _judged(rollout, world, result, diary)


def _canary_lost(rollout: Rollout, world: World, diary: Diary) -> Rollout | None:
    """The way to a canary that has the weights, where the one that is asked has them no more."""
    if rollout.canary is None:
        return None
    replica, record = world.live.get(rollout.canary.uid), rollout.record(rollout.canary.uid)
    if replica is None or record is None:
        return enter(rollout, world, "Canary")
    other = replica.version not in {None, rollout.target.version}
    if not other and replica.restarts == rollout.canary.restarts:
        return None
    why = "its engine was started anew while it was asked"
    return enter(load_again(rollout, world, record, why, diary), world, "Canary")


def _judged(rollout: Rollout, world: World, result: JobResult, diary: Diary) -> Rollout:
    match result.verdict:
        case "fail":
            return fail(rollout, world, diary, "GateFailed", result.message, blame=True)
        case "undecided":
            return fail(rollout, world, diary, "GateUndecided", result.message, blame=True)
        case "broken":
            return _broken(rollout, world, diary, "GateBroken", result.message)
    if other := _asked_another(rollout, result.summary):
        told = f"the gate asked {short(other)} instead of {short(rollout.target.version)}"
        return _broken(rollout, world, diary, "GateBroken", told)
    diary.say("GatePassed", sentences(f"{who(rollout.target)}: {result.message}"))
    return after_candidate(replace(rollout, passed=True), world, diary)


def _ordered(rollout: Rollout, world: World, diary: Diary) -> Rollout:
    """The gate's Job, once there is somebody to compare with, or certainly nobody."""
    compare = bool(available(rollout, world))
    expected = world.wanted + int(rollout.surge) > len(rollout.records)
    waits = rollout.idle or (expected and world.since(rollout.since) < INCUMBENT_SECONDS)
    if not compare and waits:
        return rollout
    if not compare and not world.policy.min_score:
        return fail(
            rollout,
            world,
            diary,
            "NothingToCompare",
            f"no replica serves {short(rollout.origin.version)} to compare with: set "
            "spec.rollout.gate.minScore, or spec.rollout.maxUnavailable to 0, so that the canary "
            "is a replica more.",
        )
    canary = rollout.canary
    uid, pod = (canary.uid, canary.pod) if canary else (None, None)
    return _with_job(rollout, JobOrder("gate", "", uid, pod, compare))


def _with_job(rollout: Rollout, order: JobOrder) -> Rollout:
    number = rollout.jobs + 1
    named = replace(order, id=identifier(rollout.id, order.kind, number))
    return replace(rollout, job=named, jobs=number)


def _broken(rollout: Rollout, world: World, diary: Diary, reason: str, why: str) -> Rollout:
    """After a Job without a verdict: another one, or the end of patience."""
    if rollout.broken < MAX_BROKEN:
        diary.warn(reason, sentences(f"{who(rollout.target)}: {why}", "It is tried again"))
        return replace(rollout, job=None, broken=rollout.broken + 1, since=world.now)
    return fail(rollout, world, diary, reason, why)


def _awaited(rollout: Rollout, world: World, diary: Diary, job: JobOrder, most: float) -> Rollout:
    """A Job without a result yet. It has a deadline of its own; this one is for what ate it."""
    if world.since(rollout.since) < most:
        return rollout
    reason = "InspectionTimedOut" if job.kind == "inspect" else "GateTimedOut"
    why = f"the Job ...-{job.kind}-{job.id} came to no end within {most:.0f} s: see its pods."
    return fail(rollout, world, diary, reason, why)


def _not_in_place(rollout: Rollout, world: World, result: JobResult) -> str:
    """Why running engines cannot load the target, empty where they can."""
    if world.policy.strategy == "Recreate":
        return "spec.rollout.strategy is Recreate."
    if result.summary.get("inPlace") is False:
        reasons = "; ".join(map(str, result.summary.get("reasons") or []))
        return f"running engines cannot load it: {reasons or result.message}."
    return unmounted(rollout, world)


def unmounted(rollout: Rollout, world: World) -> str:
    """Why the pods cannot read the target's files, empty where they can."""
    volume = rollout.target.volume
    without = [each.pod for each in world.live.values() if volume not in each.volumes]
    if without:
        return f"the running pods do not mount its volume {volume}: pod/{min(without)}."
    return ""


def _asked_another(rollout: Rollout, summary: Json) -> str | None:
    """A version that the gate saw on the candidate's side and that is not the target."""
    side = (summary.get("sides") or {}).get("candidate") or {}
    for version in side.get("weightVersions") or []:
        begin = str(version).removesuffix(_CUT)
        if not rollout.target.version.startswith(begin):
            return begin
    return None
