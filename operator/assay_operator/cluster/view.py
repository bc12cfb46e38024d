"""What is known of the cluster: a label-scoped copy in memory, fed by watches and by our writes.

The view holds custom resources, their children and their pods. Whoever brings a state, the newer
resourceVersion wins, so the answer to a write of ours is never undone by an older watch event.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from assay_operator.cluster.topics import Topic, news, topics
from assay_operator.plan import OWNER_LABEL, Json, Ref, ref

_REMEMBERED_REMOVALS = 10_000


class Key(NamedTuple):
    """Names a custom resource: the owner of children and the identity of its actor."""

    kind: str
    """Lower case, as in the owner label."""
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"

    @property
    def label(self) -> str:
        """The value of the owner label on this object's children."""
        return f"{self.kind}.{self.name}"


class Place(NamedTuple):
    """Names any object in the view."""

    namespace: str
    ref: Ref


@dataclass
class _Entry:
    item: Json
    watched: int
    """The newest resourceVersion that a watch brought; 0 where only others told of the object."""


def version(item: Json) -> int:
    """The resourceVersion as a number; Kubernetes promises that it can be compared since 1.35."""
    text = item["metadata"].get("resourceVersion", "")
    return int(text) if text.isdigit() else 0


def place(item: Json) -> Place:
    return Place(item["metadata"]["namespace"], ref(item))


def key_of(item: Json) -> Key | None:
    """Whose actor cares about `item`: its own, for a custom resource, or that of its owner.

    A custom resource is nobody's child, though another may have made it and is named in its label.
    None for any other object without an owner label.
    """
    metadata = item["metadata"]
    if item["apiVersion"].startswith("assay.dev/"):
        return Key(item["kind"].lower(), metadata["namespace"], metadata["name"])
    kind, dot, name = (metadata.get("labels") or {}).get(OWNER_LABEL, "").partition(".")
    return Key(kind, metadata["namespace"], name) if dot else None


class View:
    """The copy. Not thread-safe: it lives in one event loop.

    Args:
        wake: called with the key of every custom resource whose world changed.
    """

    def __init__(self, wake: Callable[[Key], None] = lambda _: None) -> None:
        self.wake = wake
        self._entries: dict[Place, _Entry] = {}
        self._children: defaultdict[Key, set[Place]] = defaultdict(set)
        self._owners: dict[Key, Place] = {}
        self._removed: OrderedDict[Place, int] = OrderedDict()
        self._published: defaultdict[Topic, set[Place]] = defaultdict(set)
        self._watchers: defaultdict[Topic, set[Key]] = defaultdict(set)
        self._watched: dict[Key, frozenset[Topic]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, item: Json, watched: bool = False, by: Key | None = None) -> bool:
        """Takes in a state of an object.

        Args:
            item: the whole object; it is kept, so the caller must not change it any more.
            watched: whether a watch brought it, which proves that the watch lives.
            by: whose actor made this state, and needs not be woken by it.

        Returns:
            whether it was news.
        """
        key, where, number = key_of(item), place(item), version(item)
        entry = self._entries.get(where)
        if entry is not None and watched:
            entry.watched = max(entry.watched, number)
        known = version(entry.item) if entry else self._removed.get(where, 0)
        if key is None or (number and number <= known):
            return False
        item["metadata"].pop("managedFields", None)
        before = self._forget(where)
        self._entries[where] = _Entry(item, number if watched else entry.watched if entry else 0)
        if _is_owner(where, key):
            self._owners[key] = where
            for topic in topics(item):
                self._published[topic].add(where)
        else:
            self._children[key].add(where)
        self._tell({before, key}, entry.item if entry else None, item, by)
        return True

    def remove(self, item: Json, by: Key | None = None) -> bool:
        """Takes note that an object is gone; returns whether it was known.

        A newer object of the same name stays. The version is remembered, so that a late answer to
        a write does not bring the object back.
        """
        where, number = place(item), version(item)
        entry = self._entries.get(where)
        if entry is not None and version(entry.item) > number:
            return False
        self._removed[where] = number
        self._removed.move_to_end(where)
        if len(self._removed) > _REMEMBERED_REMOVALS:
            self._removed.popitem(last=False)
        key = self._forget(where)
        self._tell({key}, entry.item if entry else None, None, by)
        return key is not None

    def owner(self, key: Key) -> Json | None:
        """The custom resource itself."""
        where = self._owners.get(key)
        return self._entries[where].item if where else None

    def owners(self) -> list[Key]:
        return list(self._owners)

    def item(self, where: Place) -> Json | None:
        """Any object."""
        entry = self._entries.get(where)
        return entry.item if entry else None

    def find(self, topic: Topic) -> list[Json]:
        """The custom resources under a topic, in the order of their places."""
        return [self._entries[where].item for where in sorted(self._published.get(topic, ()))]

    def watch(self, key: Key, looked_at: Iterable[Topic]) -> None:
        """From now on news about these topics, and no others, wake `key`."""
        wanted, had = frozenset(looked_at), self._watched.get(key, frozenset())
        for topic in had - wanted:
            self._watchers[topic].discard(key)
            if not self._watchers[topic]:
                del self._watchers[topic]
        for topic in wanted - had:
            self._watchers[topic].add(key)
        if wanted:
            self._watched[key] = wanted
        else:
            self._watched.pop(key, None)

    def children(self, key: Key) -> dict[Ref, Json]:
        """The live children but pods."""
        return {item_ref: item for item_ref, item in self._of(key) if item_ref.kind != "Pod"}

    def pods(self, key: Key) -> list[Json]:
        """The pods in the order of their names."""
        pods = [item for item_ref, item in self._of(key) if item_ref.kind == "Pod"]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))

    def known(self, kind: str) -> dict[Place, Json]:
        """All objects of a kind."""
        return {
            where: entry.item for where, entry in self._entries.items() if where.ref.kind == kind
        }

    def watched_version(self, where: Place) -> int:
        """The newest version that a watch brought of an object that is there or was deleted."""
        entry = self._entries.get(where)
        return entry.watched if entry else self._removed.get(where, 0)

    def _tell(
        self, keys: set[Key | None], before: Json | None, after: Json | None, by: Key | None
    ) -> None:
        """Wakes whoever an object that changed belongs to, and whoever looks at it."""
        woken = set(keys)
        for topic in news(before, after):
            woken |= self._watchers.get(topic, set())
        for key in woken:
            if key is not None and key != by:
                self.wake(key)

    def _of(self, key: Key) -> Iterator[tuple[Ref, Json]]:
        for where in self._children.get(key, ()):
            yield where.ref, self._entries[where].item

    def _forget(self, where: Place) -> Key | None:
        """Takes an entry out of all indexes; returns whose it was."""
        entry = self._entries.pop(where, None)
        key = key_of(entry.item) if entry else None
        if entry is None or key is None:
            return None
        if _is_owner(where, key):
            self._owners.pop(key, None)
            for topic in topics(entry.item):
                self._published[topic].discard(where)
                if not self._published[topic]:
                    del self._published[topic]
        elif key in self._children:
            self._children[key].discard(where)
            if not self._children[key]:
                del self._children[key]
        return key


def _is_owner(where: Place, key: Key) -> bool:
    return where.ref.kind.lower() == key.kind and where.ref.name == key.name
