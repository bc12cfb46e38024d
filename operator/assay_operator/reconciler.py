"""One pass over a custom resource: look, plan, apply, tell."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from assay_operator.actor import Slots
from assay_operator.cluster.apply import Applier
from assay_operator.cluster.client import ApiError
from assay_operator.cluster.view import Key, View
from assay_operator.conditions import Verdict, with_verdicts
from assay_operator.reconcilers.shell import Decide, Kind

TERMINATING_SECONDS = 30.0
_ROUNDS = 3
"""How often a plan is made anew in one pass because the last one changed the world."""


class Reconciler:
    """The pass that actors drive.

    Args:
        view: what is known of the cluster.
        applier: carries out plans.
        kinds: how each kind is looked at, by its name in a `Key`.
    """

    def __init__(self, view: View, applier: Applier, kinds: Mapping[str, Kind]) -> None:
        self._view = view
        self._applier = applier
        self._kinds = kinds
        self._slots = Slots()

    async def __call__(self, key: Key) -> float | None:
        """Looks at one object and does what is due.

        Returns:
            seconds until the next look, None where the object is gone or its kind needs no work.

        Raises:
            ApiError: something could not be written; the pass is to be repeated.
        """
        owner, kind = self._view.owner(key), self._kinds.get(key.kind)
        if owner is None or kind is None:
            self._applier.forget(key)
            self._view.watch(key, ())
            return None
        if owner["metadata"].get("deletionTimestamp"):
            return TERMINATING_SECONDS
        # HTTP takes as long as the slowest pod: no slot is held meanwhile.
        decide = await kind.look(key, owner)
        async with self._slots:
            return await self._act(key, decide)

    async def complain(self, key: Key, error: Exception) -> None:
        """Says in the object's status that it could not be worked on, if that can be written."""
        owner = self._view.owner(key)
        if owner is None or isinstance(error, ApiError):
            return
        message = f"The operator failed on this object: {type(error).__name__}: {error}"
        status = with_verdicts(
            owner.get("status") or {},
            {"Applied": Verdict(False, "InternalError", message)},
            owner["metadata"].get("generation", 0),
            datetime.now(UTC),
        )
        await self._applier.status(key, owner, status)

    async def _act(self, key: Key, decide: Decide) -> float | None:
        for left in reversed(range(_ROUNDS)):
            owner = self._view.owner(key)
            if owner is None:
                return 0.0
            now = datetime.now(UTC)
            made = decide(owner, now)
            outcome = await self._applier.children(key, owner, made)
            # What changed is seen at once, so that the status is written once and says it all.
            if not outcome.changed or not left:
                await self._applier.tell(key, owner, made, now)
                break
        if outcome.errors:
            raise outcome.errors[0]
        retry = self._applier.retry_in(key)
        return made.next_look if retry is None else min(made.next_look, retry)
