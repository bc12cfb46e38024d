"""Suites: the items that a gate asks or a job trains on, as JSON lines, validated on load.

Each line is one item; a first line without an `id` may name the suite and give defaults. All wrong
lines are reported at once, by number and the field's path.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from assay_verifiers.config import AnyVerifier, VerifierModel
from assay_verifiers.contract import Task
from assay_verifiers.jsonlines import (
    SuiteError,
    canonical_digest,
    parsed,
    read_lines,
    validated,
)
from assay_verifiers.registry import soft

MOST_ITEMS = 1_000_000


class Message(BaseModel):
    """One message in the form of OpenAI's chat API."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None


class _Asked(BaseModel):
    """What an item of any kind has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=512)
    prompt: str | None = None
    messages: tuple[Message, ...] | None = Field(None, min_length=1)
    reference: Any = None
    verifier: AnyVerifier

    def task(self) -> Task:
        """What a verifier may know of it. Of messages, the prompt is the last user's."""
        prompt = self.prompt or ""
        for message in self.messages or ():
            if message.role == "user":
                prompt = message.content
        return Task(self.id, prompt, self.reference)


class SuiteItem(_Asked):
    """One question of a suite: exactly one of `prompt` and `messages`, the truth and the judge."""

    split: str | None = Field(None, min_length=1, max_length=64)
    tags: tuple[str, ...] = ()
    maxTokens: int | None = Field(None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        return self


class Judged(_Asked):
    """A line of `assay-verify run`: an item with a completion to be judged."""

    completion: str


class Header(BaseModel):
    """A suite's first line: its name, and what holds for the items that do not say otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str = Field(min_length=1, max_length=256)
    description: str = ""
    verifier: AnyVerifier | None = None
    split: str | None = Field(None, min_length=1, max_length=64)
    tags: tuple[str, ...] = ()
    maxTokens: int | None = Field(None, ge=1, le=1_000_000)


_INHERITED = ("verifier", "split", "tags", "maxTokens")


@dataclass(frozen=True)
class Suite:
    """Items that were found to be valid.

    Attributes:
        name: from the header, else the file's.
        items: in the file's order.
        digest: of what the items say; neither their order nor white space nor the order of keys
            changes it.
        content: each item's own digest, by id.
    """

    name: str
    items: tuple[SuiteItem, ...]
    digest: str
    content: Mapping[str, str]

    @property
    def weak(self) -> int:
        """How many items are judged by opinions only."""
        return sum(soft(item.verifier) for item in self.items)

    def splits(self) -> dict[str, int]:
        """How many items each split has; those of none are under the empty name."""
        return dict(sorted(Counter(item.split or "" for item in self.items).items()))

    def types(self) -> dict[str, int]:
        """How many items each type of verifier judges."""
        return dict(sorted(Counter(item.verifier.type for item in self.items).items()))

    def split(self, name: str) -> Suite:
        """The items of one split.

        Raises:
            ValueError: there are none.
        """
        items = tuple(item for item in self.items if item.split == name)
        if not items:
            there = ", ".join(split or "(none)" for split in self.splits())
            raise ValueError(f"no item is in split {name!r}: there are {there}")
        content = {item.id: self.content[item.id] for item in items}
        return Suite(self.name, items, _digest(content), content)

    def shuffled(self, seed: int) -> tuple[SuiteItem, ...]:
        """The items in an order of which every beginning is a fair sample.

        It follows from what the items say and the seed, so that everybody draws the same one.
        """

        def place(item: SuiteItem) -> str:
            text = f"{self.digest}\0{seed}\0{self.content[item.id]}"
            return hashlib.sha256(text.encode()).hexdigest()

        return tuple(sorted(self.items, key=place))


def load_suite(path: Path, verifier: VerifierModel | None = None) -> Suite:
    """A suite from a file of JSON lines.

    Args:
        path: the file.
        verifier: of the items for which neither they nor the header name one.

    Raises:
        SuiteError: it has a wrong line, an id twice, or no item.
        OSError: it cannot be read.
    """
    items: list[SuiteItem] = []
    content: dict[str, str] = {}
    problems: list[str] = []
    first: dict[str, int] = {}
    name = path.stem
    given = {"verifier": verifier.model_dump(mode="json", by_alias=True)} if verifier else {}
    defaults: dict[str, Any] = {}
    for number, data, problem in read_lines(path):
        if problem:
            problems.append(f"line {number}: {problem}")
            continue
        if isinstance(data, dict) and "suite" in data and "id" not in data:
            if items or problems or defaults:
                problems.append(f"line {number}: only the first line may be a header")
                continue
            header, wrong = validated(Header, data)
            problems += [f"line {number}: {text}" for text in wrong]
            if header:
                name = header.suite
                defaults = {key: data[key] for key in _INHERITED if key in data}
            continue
        merged = {**given, **defaults, **data} if isinstance(data, dict) else data
        item, wrong = validated(SuiteItem, merged)
        if item and item.id in first:
            wrong = [f"id: {item.id!r} stands in line {first[item.id]} already"]
        problems += [f"line {number}: {text}" for text in wrong]
        if item and not wrong:
            first[item.id] = number
            items.append(item)
            content[item.id] = canonical_digest(merged)
    if not items and not problems:
        problems.append("the suite is empty")
    if len(items) > MOST_ITEMS:
        problems.append(f"more than {MOST_ITEMS} items")
    if problems:
        raise SuiteError(path, problems)
    return Suite(name, tuple(items), _digest(content), content)


def load_judged(path: Path) -> list[tuple[int, Judged, str]]:
    """The lines of `assay-verify run`: number, item, and the digest of what it says.

    Ids may come several times, since one item may have several completions.

    Raises:
        SuiteError: it has a wrong line, or no item.
        OSError: it cannot be read.
    """
    found: list[tuple[int, Judged, str]] = []
    problems: list[str] = []
    for number, data, problem in read_lines(path):
        item, wrong = (None, [problem]) if problem else validated(Judged, data)
        problems += [f"line {number}: {text}" for text in wrong]
        if item:
            found.append((number, item, canonical_digest(data)))
    if not found and not problems:
        problems.append("the file is empty")
    if problems:
        raise SuiteError(path, problems)
    return found


def find_judged(path: Path, id: str) -> list[Judged]:
    """The lines of one id; what other lines hold does not matter.

    Raises:
        SuiteError: a line of that id is wrong, or there is none.
        OSError: it cannot be read.
    """
    found: list[Judged] = []
    problems: list[str] = []
    for number, data, _ in read_lines(path):
        if isinstance(data, dict) and data.get("id") == id:
            item, wrong = validated(Judged, data)
            problems += [f"line {number}: {text}" for text in wrong]
            found += [item] if item else []
    if not found and not problems:
        problems.append(f"no line has the id {id!r}")
    if problems:
        raise SuiteError(path, problems)
    return found


def parse_judged(text: str) -> Judged:
    """One line of `assay-verify run`, given as text.

    Raises:
        ValueError: it is wrong; the message says where.
    """
    data, problem = parsed(text.encode(errors="surrogatepass"))
    item, wrong = (None, [problem]) if problem else validated(Judged, data)
    if item is None:
        raise ValueError("; ".join(wrong))
    return item


def _digest(content: Mapping[str, str]) -> str:
    return f"sha256:{canonical_digest(sorted(content.values()))}"


def question_key(item: SuiteItem) -> str:
    """What an item asks, hashed so that case, white space and forms of characters do not matter.

    System messages do not count: they are often the same for a whole suite.
    """
    if item.messages is None:
        text = item.prompt or ""
    else:
        text = "\n".join(m.content for m in item.messages if m.role not in ("system", "developer"))
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode(errors="surrogatepass")).hexdigest()


def shared_items(one: Suite, other: Suite) -> list[tuple[str, str]]:
    """Ids, of one suite and the other, that ask the same: who trains on one has seen the other."""
    known: dict[str, str] = {}
    for item in other.items:
        known.setdefault(question_key(item), item.id)
    keyed = ((item.id, known.get(question_key(item))) for item in one.items)
    return [(mine, theirs) for mine, theirs in keyed if theirs is not None]


def assign_splits(suite: Suite, shares: Mapping[str, float], salt: str = "") -> dict[str, str]:
    """The split of each item by its id, by the hash of what it asks.

    It depends on nothing but the question, the shares and the salt: not on the order, nor on which
    other items there are; and items that ask the same land in the same split. Items that name a
    split keep it.

    Args:
        suite: the items.
        shares: the splits' shares, in order; their sum need not be 1.
        salt: another one gives another division.

    Raises:
        ValueError: a share is not positive.
    """
    if not shares or any(not 0 < share < float("inf") for share in shares.values()):
        raise ValueError("every split needs a positive share")
    total = sum(shares.values())
    found: dict[str, str] = {}
    for item in suite.items:
        digest = hashlib.sha256(f"{salt}\0{question_key(item)}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64 * total
        chosen = list(shares)[-1]
        for name, share in shares.items():
            place -= share
            if place < 0:
                chosen = name
                break
        found[item.id] = item.split or chosen
    return found
