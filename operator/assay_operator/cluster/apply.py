"""Carries out a `Plan`: children, actions, Events and status, each only when it is due."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import datetime

from assay_operator.cluster.actions import Engines, Hands
from assay_operator.cluster.client import ApiError, Client, jittered
from assay_operator.cluster.due import (
    Applied,
    digest,
    event_object,
    has_drifted,
    is_anothers,
    is_dismissible,
    is_due,
    is_ours,
    is_precious,
    owned,
    status_is_due,
    superfluous,
    without_nulls,
)
from assay_operator.cluster.view import Key, Place, View, place
from assay_operator.plan import Annotate, Json, Plan, Ref, ref

FIRST_RETRY = 2.0
LAST_RETRY = 300.0
_WORKLOADS = frozenset({"Deployment", "StatefulSet", "Job"})
"""Kinds whose pods read other children: they come after those."""

log = logging.getLogger(__name__)


@dataclass
class Rejection:
    """A child that the API server refused: not sent again before `until` unless it changes."""

    digest: str
    message: str
    until: float
    times: int


@dataclass
class Ledger:
    """What was done for one owner, so that it is not done again."""

    uid: str
    applied: dict[Ref, Applied] = field(default_factory=dict)
    rejected: dict[Ref, Rejection] = field(default_factory=dict)
    status: tuple[Json, Json] | None = None
    """The status that we sent last, and what stood there afterwards."""


@dataclass(frozen=True)
class Outcome:
    """What became of the children.

    Attributes:
        changed: whether the world is another one now, so that it should be looked at again.
        errors: transient failures; the pass has to be repeated.
    """

    changed: bool
    errors: tuple[ApiError, ...] = ()


class Applier:
    """Carries out plans through `client` and tells `view` what the API server answered.

    Args:
        client: writes.
        view: what is known of the cluster.
        engines: for the actions that engines carry out.
    """

    def __init__(self, client: Client, view: View, engines: Engines) -> None:
        self._client = client
        self._view = view
        self._hands = Hands(client, view, engines)
        self._ledgers: dict[Key, Ledger] = {}

    def forget(self, key: Key) -> None:
        """The owner is gone."""
        self._ledgers.pop(key, None)

    def rejections(self, key: Key) -> dict[Ref, str]:
        """What the API server said about the children that it refused."""
        ledger = self._ledgers.get(key)
        rejected = ledger.rejected if ledger else {}
        return {child: rejection.message for child, rejection in rejected.items()}

    def drifted(self, key: Key) -> list[Ref]:
        """The children whose spec somebody else changed since we applied them."""
        ledger = self._ledgers.get(key)
        found = []
        for child, last in (ledger.applied if ledger else {}).items():
            live = self._view.item(Place(key.namespace, child))
            if live is not None and has_drifted(live, last):
                found.append(child)
        return found

    def retry_in(self, key: Key) -> float | None:
        """Seconds until the first refused child may be sent again."""
        ledger = self._ledgers.get(key)
        if ledger is None or not ledger.rejected:
            return None
        first = min(rejection.until for rejection in ledger.rejected.values())
        return max(0.0, first - asyncio.get_running_loop().time())

    async def children(self, key: Key, owner: Json, plan: Plan) -> Outcome:
        """Applies the children that are due, deletes those that the plan does not name, and then
        the custom resources that it wants to go.

        Raises:
            nothing of the API server's: refusals are recorded, transient errors returned.
        """
        ledger = self._ledger(key, owner)
        named = {ref(item) for item in plan.objects}
        vanished = [child for child in ledger.rejected if child not in named]
        for child in vanished:
            del ledger.rejected[child]
        stages = (
            [item for item in plan.objects if item["kind"] not in _WORKLOADS],
            [item for item in plan.objects if item["kind"] in _WORKLOADS],
        )
        changes = [bool(vanished)]
        errors: list[ApiError] = []
        for stage in stages:
            results = await asyncio.gather(
                *(self._child(key, ledger, owned(item, owner)) for item in stage)
            )
            errors += [result for result in results if isinstance(result, ApiError)]
            changes += [result is True for result in results]
        if plan.prune and not errors and not ledger.rejected:
            leftover = superfluous(self._view.children(key).values(), named, ledger.uid)
            errors += await self._delete(key, leftover)
            changes.append(bool(leftover))
        if dismissed := self._dismissed(key, plan.delete):
            errors += await self._delete(key, dismissed)
            changes.append(True)
        return Outcome(any(changes), tuple(errors))

    async def tell(self, key: Key, owner: Json, plan: Plan, now: datetime) -> None:
        """Nudges pods, says Events, writes the status if it differs, and then acts on engines.

        Events come before the status: whoever dies in between says them again under the same name.
        Engines come after it: whoever dies in between finds in the status what was to be done, and
        no engine is touched by a plan that is written nowhere.

        Raises:
            ApiError: the status could not be written, or an action not carried out.
        """
        nudges = [action for action in plan.actions if isinstance(action, Annotate)]
        await asyncio.gather(
            *(self._hands.do(key, [nudge]) for nudge in nudges),
            *(self._say(event_object(event, owner, now)) for event in plan.events),
        )
        if await self.status(key, owner, plan.status):
            await self._hands.do(key, (item for item in plan.actions if item not in nudges))

    async def status(self, key: Key, owner: Json, status: Json) -> bool:
        """Writes the owner's whole status, if it differs from the live one.

        Returns:
            whether it stands there now; False where the owner is gone.

        Raises:
            ApiError: it was not written.
        """
        ledger = self._ledger(key, owner)
        desired, live = without_nulls(status), owner.get("status") or {}
        if not status_is_due(desired, live, ledger.status):
            return True
        names = ("name", "namespace", "uid")
        item = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "metadata": {name: owner["metadata"][name] for name in names},
            "status": desired,
        }
        try:
            answer = await self._client.apply(item, sub="status")
        except ApiError as error:
            # A conflict here says that the uid is another one: the owner was made anew.
            if error.status not in (404, 409):
                raise
            return False
        ledger.status = (desired, answer.get("status") or {})
        self._view.put(answer, by=key)
        return True

    def _ledger(self, key: Key, owner: Json) -> Ledger:
        """The owner's ledger; an owner that was made anew under the same name gets a fresh one."""
        uid = owner["metadata"]["uid"]
        ledger = self._ledgers.get(key)
        if ledger is None or ledger.uid != uid:
            ledger = self._ledgers[key] = Ledger(uid)
        return ledger

    async def _child(self, key: Key, ledger: Ledger, desired: Json) -> bool | ApiError:
        """Applies one child if it is due; returns whether anything changed, or what went wrong."""
        name, now = ref(desired), asyncio.get_running_loop().time()
        there = self._view.item(place(desired))
        if not is_due(desired, there, ledger.applied.get(name)):
            return ledger.rejected.pop(name, None) is not None
        refused = ledger.rejected.get(name)
        if refused and refused.digest == digest(desired) and now < refused.until:
            return False
        try:
            answer = await self._put(desired, there, ledger.uid)
        except ApiError as error:
            if error.transient:
                return error
            return _refuse(ledger, desired, error, now)
        ledger.applied[name] = Applied.of(desired, answer)
        was_refused = ledger.rejected.pop(name, None) is not None
        return self._view.put(answer, by=key) or was_refused

    async def _put(self, desired: Json, there: Json | None, uid: str) -> Json:
        """Applies with force only over what is ours: an object of somebody else is not taken."""
        if there is None and is_precious(desired):
            there = await self._there(desired)
        if there is not None and is_ours(there, desired, uid):
            return await self._put_right(desired)
        if there is not None and (is_precious(desired) or is_anothers(there, desired)):
            raise _taken(desired, "it was not made for this object")
        try:
            return await self._client.apply(desired, force=False)
        except ApiError as error:
            if error.status != 409:
                raise
            there = await self._there(desired)
            if there is not None and is_ours(there, desired, uid):
                return await self._put_right(desired)
            raise _taken(desired, error.message) from error

    async def _there(self, desired: Json) -> Json | None:
        """What the API server has under this name."""
        metadata = desired["metadata"]
        try:
            return await self._client.get(desired["kind"], metadata["namespace"], metadata["name"])
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    async def _put_right(self, desired: Json) -> Json:
        """Applies over a child of ours, whatever somebody has made of it.

        Under server-side apply what others added to a list stays in it, which can make an invalid
        whole: a Service whose port was edited would get both ports, of the same name. Then the
        lists are replaced.
        """
        try:
            return await self._client.apply(desired)
        except ApiError as error:
            if error.status != 422:
                raise
            return await self._client.merge(desired)

    def _dismissed(self, key: Key, names: tuple[Ref, ...]) -> list[Json]:
        """The custom resources of these names that this owner made."""
        found = (self._view.item(Place(key.namespace, name)) for name in names)
        return [item for item in found if item and is_dismissible(item, key.label)]

    async def _delete(self, key: Key, items: list[Json]) -> list[ApiError]:
        async def one(item: Json) -> ApiError | None:
            try:
                await self._client.delete(item)
            except ApiError as error:
                return error
            self._view.remove(item, by=key)
            return None

        return [error for error in await asyncio.gather(*map(one, items)) if error]

    async def _say(self, event: Json) -> None:
        """Best effort: an Event is never worth a failed pass. 409 says that it was said before."""
        try:
            await self._client.create(event)
        except ApiError as error:
            if error.status != 409:
                log.warning("Event %s was not written: %s", event["metadata"]["name"], error)


def _taken(desired: Json, why: str) -> ApiError:
    return ApiError(
        422,
        "Taken",
        f"{desired['kind']} {desired['metadata']['name']} exists already and is not this "
        f"object's: delete it or choose another name ({why})",
    )


def _refuse(ledger: Ledger, desired: Json, error: ApiError, now: float) -> bool:
    """Records a refusal with a longer pause each time; returns whether it is news."""
    name, content = ref(desired), digest(desired)
    before = ledger.rejected.get(name)
    times = before.times + 1 if before and before.digest == content else 1
    pause = jittered(min(LAST_RETRY, FIRST_RETRY * 2 ** (times - 1)))
    ledger.rejected[name] = Rejection(content, error.message, now + pause, times)
    return before is None or before.message != error.message
