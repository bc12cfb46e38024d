"""Carries out a plan's actions: each may be repeated, and is decided anew from what is seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from assay_operator.cluster.client import ApiError, Client
from assay_operator.cluster.view import Key, View
from assay_operator.plan import Action, Annotate, Json, Load, Pause, Restart, Resume


class Engines(Protocol):
    """What can be done with an engine. Nothing here raises: what came of it is asked for later."""

    def load(self, pod: Json, action: Load) -> None:
        """Begins to load weights, unless the same engine is at it already; waits for nothing."""

    async def pause(self, pod: Json) -> None:
        """Has it hold its requests."""

    async def resume(self, pod: Json) -> None:
        """Has it go on with them."""


class Hands:
    """Does to pods what plans say.

    Args:
        client: annotates and deletes.
        view: knows the pods, and is told what the API server answered.
        engines: is asked for what only an engine can do.
    """

    def __init__(self, client: Client, view: View, engines: Engines) -> None:
        self._client = client
        self._view = view
        self._engines = engines

    async def do(self, key: Key, actions: Iterable[Action]) -> None:
        """Carries out actions one after the other. A pod that is gone is no error.

        Raises:
            ApiError: one could not be carried out, or this process does not lead any more.
        """
        pods = {pod["metadata"]["name"]: pod for pod in self._view.pods(key)}
        for action in actions:
            pod = pods.get(action.pod)
            if pod is not None:
                await self._one(key, pod, action)

    async def _one(self, key: Key, pod: Json, action: Action) -> None:
        if not isinstance(action, Annotate) and not self._client.may_write():
            raise ApiError(0, "NotLeader", "the lease is not held any more")
        match action:
            case Annotate():
                await self._annotate(key, pod, action)
            case Load():
                self._engines.load(pod, action)
            case Pause():
                await self._engines.pause(pod)
            case Resume():
                await self._engines.resume(pod)
            case Restart():
                # It is for the watch to say that the pod is on its way out.
                if not pod["metadata"].get("deletionTimestamp"):
                    await self._client.delete(pod)

    async def _annotate(self, key: Key, pod: Json, action: Annotate) -> None:
        if (pod["metadata"].get("annotations") or {}).get(action.key) == action.value:
            return
        notes = {action.key: action.value}
        try:
            answer = await self._client.annotate("Pod", key.namespace, action.pod, notes)
        except ApiError as error:
            if error.status != 404:
                raise
            return
        self._view.put(answer, by=key)
