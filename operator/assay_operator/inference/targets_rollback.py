"""Going back by hand: what the annotation `assay.dev/rollback` names. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from assay_operator.conditions import Verdict
from assay_operator.inference.memory import Rollback
from assay_operator.inference.rollout_words import short, who
from assay_operator.inference.rollout_world import Target
from assay_operator.inference.targets_case import Case, Choice, names

ROLLBACK_ANNOTATION = "assay.dev/rollback"
PREVIOUS = "previous"


def taken_back(case: Case, asked: str, otherwise: Choice) -> Choice:
    """What the annotation names, for as long as it stands.

    Only what was served here before can be meant: it passed, so it needs no gate. Where the
    annotation says nothing that can be done, what is served stays: whoever wants to go back does
    not want to go on.

    Args:
        case: all that is known.
        asked: what stands in the annotation.
        otherwise: what would be served without it.
    """
    known = case.memory.notes.rollback
    if known and known.asked == asked:
        return _pinned(case, known, otherwise)
    found = set(_previous(case) if asked == PREVIOUS else _named(case, asked))
    if len(found) > 1:
        told = ", ".join(sorted(map(short, found)))
        return _stays(
            case, otherwise, "RollbackAmbiguous", f"{asked!r} may be any of {told}: say more of it."
        )
    if not found:
        return _stays(case, otherwise, "RollbackUnknown", _unknown(case, asked))
    version = found.pop()
    target = _placed(case, version)
    if target is None:
        return _stays(
            case,
            otherwise,
            "RollbackUnknown",
            f"{short(version)} was served here, and nobody remembers where it lies: set "
            "spec.model.source to it.",
        )
    return _pinned(case, Rollback(asked, target), otherwise)


def _pinned(case: Case, rollback: Rollback, otherwise: Choice) -> Choice:
    target = rollback.target
    message = (
        f"{who(target)}, for the annotation {ROLLBACK_ANNOTATION} says "
        f"{rollback.asked!r}. Take it away to go on with what the spec says."
    )
    # It was wanted back by hand: a refusal from another time does not stand against that.
    refused = any(each.get("version") == target.version for each in case.memory.refused)
    retry = target.version if refused else otherwise.retry
    verdict = Verdict(True, "RolledBack", message)
    return replace(
        otherwise, target=target, verdict=verdict, retry=retry, rollback=rollback, gated=False
    )


def _stays(case: Case, otherwise: Choice, reason: str, message: str) -> Choice:
    stays = case.stays()
    told = f"The annotation {ROLLBACK_ANNOTATION} cannot be followed: {message}"
    if stays:
        told = f"{told} {stays.name} is served meanwhile."
    return replace(otherwise, target=stays, verdict=Verdict(False, reason, told))


def _previous(case: Case) -> Iterator[str]:
    """What was served before that which is served, or is being left."""
    rollout, served = case.memory.rollout, case.memory.served
    if rollout is None or served is None:
        return
    if not rollout.over:
        yield rollout.origin.version
        return
    for entry in case.memory.history:
        if (entry.get("result"), entry.get("version")) == ("Served", served.version):
            before = entry.get("from")
            if before and before != served.version:
                yield before
            return


def _served(case: Case) -> dict[str, str]:
    """The versions that were served here as far as is remembered, with their names."""
    found: dict[str, str] = {}
    for entry in case.memory.history:
        if entry.get("result") == "Served":
            found.setdefault(entry["version"], entry.get("name") or "")
        if before := entry.get("from"):
            place = case.memory.notes.place(before)
            found[before] = found.get(before) or (place.name if place else "")
    return found


def _named(case: Case, asked: str) -> Iterator[str]:
    served = _served(case)
    exact = [version for version, name in served.items() if asked in {version, name}]
    yield from exact or (version for version in served if names(asked, version))


def _placed(case: Case, version: str) -> Target | None:
    """Where weights lie that were served."""
    source = case.source
    offers = (case.of_checkpoint(item) for item in case.observation.checkpoints)
    if case.spec.model.follow and case.spec.model.follow.claim:
        claim = case.spec.model.follow.claim
        offers = (case.of_checkpoint(item, claim) for item in case.observation.checkpoints)
    for target in (
        *case.memory.known,
        case.memory.notes.place(version),
        source,
        *offers,
    ):
        if target is not None and target.version == version:
            return target
    return None


def _unknown(case: Case, asked: str) -> str:
    served = _served(case)
    current = case.memory.served
    others = [
        f"{name} ({short(version)})" if name and name != version else short(version)
        for version, name in served.items()
        if current is None or version != current.version
    ]
    if not others:
        return "nothing else was served here before."
    if asked == PREVIOUS:
        return "what was served before is not remembered any more."
    return f"{asked!r} is none of what was served here: {', '.join(others)}."
