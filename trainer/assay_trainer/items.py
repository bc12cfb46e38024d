"""Items in an endless order, from a suite or from a generator.

The order is a pure function of the seed and a number, so a run goes on exactly where it was from
the number alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

from assay_trainer import check
from assay_trainer.settings import Generator
from assay_verifiers.config import ReasoningGymVerifier, VerifierModel
from assay_verifiers.suites import SuiteItem

_ROUNDS = 90


class DataError(ValueError):
    """Items or their prompts cannot be used; the message says which, and what to do."""


class Source(Protocol):
    """Items by their place, from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> SuiteItem: ...


@dataclass(frozen=True)
class Made:
    """The items of a reasoning-gym task, each made when it is asked for."""

    name: str
    dataset: Any
    verifier: VerifierModel

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> SuiteItem:
        try:
            entry = self.dataset[place]
        except Exception as reason:
            raise DataError(
                f"reasoning-gym cannot make item {place} of {self.name} "
                f"({type(reason).__name__}: {reason}): another seed makes other items"
            ) from reason
        return SuiteItem(
            id=f"{self.name}-{place}",
            prompt=entry["question"],
            reference={"dataset": self.name, "entry": entry},
            verifier=self.verifier,
        )


def open_source(
    source: str,
    split: str | None,
    verifier: VerifierModel | None,
    *,
    seed: int,
    size: int | None = None,
) -> Source:
    """The items that a job's field names.

    Args:
        source: a suite's path or reasoning-gym://NAME?key=value.
        split: only the suite's items of it.
        verifier: judges every item; None: each item's own.
        seed: of what is made, where the source does not give one.
        size: how many items are made, where the source does not say it; None: reasoning-gym's own
            default.

    Raises:
        DataError: they cannot be read or made, or there are none.
    """
    try:
        found = check.items(source, split, verifier)
        items = found.suite.items if found.suite else ()
        if found.generator:
            return _made(found.generator, verifier, seed, size)
    except (ValueError, OSError) as reason:
        raise DataError(str(reason)) from reason
    if verifier is None:
        return items
    return tuple(item.model_copy(update={"verifier": verifier}) for item in items)


def _made(
    generator: Generator, verifier: VerifierModel | None, seed: int, size: int | None
) -> Source:
    # Seconds of imports, so only where a job wants it.
    import reasoning_gym  # noqa: PLC0415

    given = dict(generator.parameters)
    # reasoning-gym makes item i from seed + i: item 1 of seed 7 is item 0 of seed 8, and held-out
    # items with the next seed would all be trained on. Scattered seeds make that a matter of
    # 1 : 100,000 for 20,000 items. Below 2^31, since some tasks want a 32-bit sum.
    scattered = blake2b(str(given.get("seed", seed)).encode(), digest_size=8).digest()
    given["seed"] = int.from_bytes(scattered) >> 33
    if size is not None:
        given.setdefault("size", size)
    try:
        dataset = reasoning_gym.create_dataset(generator.dataset, **given)
        count = len(dataset)
    except Exception as reason:
        raise ValueError(f"{generator.dataset}: reasoning-gym refuses it: {reason}") from reason
    if not count:
        raise ValueError(f"{generator.dataset}: with size 0 there are no items")
    return Made(generator.dataset, dataset, verifier or ReasoningGymVerifier())


@lru_cache(maxsize=8)
def _rounds(count: int, seed: int, epoch: int) -> tuple[tuple[bytes, int], ...]:
    names = (f"{seed} {epoch} {number}".encode() for number in range(_ROUNDS))
    keys = [blake2b(name, digest_size=16).digest() for name in names]
    return tuple((key, int.from_bytes(key) % count) for key in keys)


def shuffled(place: int, count: int, *, seed: int, epoch: int) -> int:
    """Where a permutation of range(count), drawn from seed and epoch, sends a place.

    The swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012, arXiv:1208.1176): each round
    pairs places by a pivot and swaps each pair or not by the toss of a keyed hash. One place is
    found without the others, so no list of them is kept, however many there are.
    """
    for key, pivot in _rounds(count, seed, epoch):
        partner = (pivot - place) % count
        toss = blake2b(max(place, partner).to_bytes(8), key=key, digest_size=1).digest()
        if toss[0] & 1:
            place = partner
    return place


class Items:
    """Items in an endless order: all of them, then all of them again.

    Args:
        source: at least one item.
        seed: of the orders.
        shuffle: whether each time round has an order of its own; else always the source's.
    """

    def __init__(self, source: Source, *, seed: int, shuffle: bool) -> None:
        self._source = source
        self._seed = seed
        self._shuffle = shuffle

    def __len__(self) -> int:
        return len(self._source)

    def item(self, number: int) -> SuiteItem:
        """The item with a number in the order, from 0.

        Raises:
            DataError: it could not be made.
        """
        epoch, place = divmod(number, len(self))
        if self._shuffle:
            place = shuffled(place, len(self), seed=self._seed, epoch=epoch)
        return self._source[place]

    def known(self) -> Iterator[SuiteItem]:
        """What can be looked at before the run: a suite's items; of made ones the first."""
        for place in range(1 if isinstance(self._source, Made) else len(self)):
            yield self._source[place]
