"""How samples become passes: which share one, and where each token lies in it.

Nothing is padded and no token is computed twice. The sequences of a pass lie end to end; samples of
one prompt share its tokens, which are there once, since what a token is to a causal model depends
only on what stands before it. With 16 completions of a 500-token prompt that is 7,500 tokens less.
The last token of a completion is no input: nothing is predicted from it.

Plain functions of lengths and ids; the tensors are indices, and no model is known here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from assay_trainer.batch import Sample

WASTE = 1.25
"""How much longer than its shortest row a padded block's longest may be..."""
CLOSE = 16
"""...unless they differ by no more tokens than this: small blocks cost more than padding."""


@dataclass(frozen=True)
class Pass:
    """What goes through the model at one time.

    Attributes:
        samples: by their places in the batch; those of one prompt stand together.
        counts: False for a pass that only keeps a process in step with the others.
    """

    samples: tuple[int, ...]
    counts: bool = True


@dataclass(frozen=True)
class Block:
    """Attention of rows that are nearly of one length, padded; for devices without a varlen kernel.

    Attributes:
        queries: [N, Q] places of tokens; a row is filled up with its first.
        keys: [N, K] likewise.
        mask: [N, 1, Q, K] bool, what each query sees; None: of Q = K, what stands before it.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Layout:
    """Where the T tokens of a pass lie, and which R of them predict a token of a completion.

    Attention is over N segments: a prompt with itself, and each completion with its prompt and
    itself. A segment's queries are consecutive tokens. Its last query sees all its keys, the one
    before it all but the last, and so on.

    Attributes:
        ids: [T] token ids.
        positions: [T] each token's position in its sequence.
        sources: [R] the token that each completion token is predicted from.
        targets: [R] the completion tokens, sample after sample.
        sequence: [R] each one's sample, from 0, in the order of `Pass.samples`.
        queries: [N + 1] int32, where segments begin among the tokens; the last is T.
        keys: [N + 1] int32, where segments begin among their keys.
        spread: which tokens those keys are; None where they are the tokens themselves.
        longest_query: of all segments.
        longest_keys: likewise.
        blocks: the same attention with padding; empty where it was not asked for.
        unpadded: [T] each token's place in the blocks' queries, end to end.
    """

    ids: Tensor
    positions: Tensor
    sources: Tensor
    targets: Tensor
    sequence: Tensor
    queries: Tensor
    keys: Tensor
    spread: Tensor | None
    longest_query: int
    longest_keys: int
    blocks: tuple[Block, ...]
    unpadded: Tensor | None

    def to(self, device: torch.device) -> Self:
        """The same on a device; the host does not wait for the copies."""
        return self if device.type == "cpu" else _moved(self, device)


def _moved(thing: Any, device: torch.device) -> Any:
    if isinstance(thing, Tensor):
        return on(thing, device)
    if isinstance(thing, tuple):
        return tuple(_moved(part, device) for part in thing)
    if isinstance(thing, Layout | Block):
        return type(thing)(
            **{f.name: _moved(getattr(thing, f.name), device) for f in fields(thing)}
        )
    return thing


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from pinned memory, so that the host does not wait for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def plan(
    samples: Sequence[Sample], which: Iterable[int], budget: int, processes: int = 1
) -> list[list[Pass]]:
    """Passes for each process: the fewest, the same number for all, as even as they can be.

    Samples stay in order, those of one prompt together, and passes are cut between samples; a
    prompt whose samples are parted is there twice. The same samples always give the same passes.

    Args:
        samples: the whole batch's.
        which: the places in it of those that are to go through the model.
        budget: the most tokens of a pass.
        processes: how many there are.

    Returns:
        A list of passes for each process.

    Raises:
        ValueError: a sample alone is longer than the budget, or has no prompt.
    """
    order = [i for family in _families(samples, which) for i in family]
    if not order:
        return [[] for _ in range(processes)]
    shortest = min(order, key=lambda i: _alone(samples[i]))
    longest = max(_alone(samples[i]) for i in order)
    if longest > budget:
        raise ValueError(f"a sample has {longest} tokens, but a pass holds {budget}")
    rounds = -(-len(_cut(samples, order, budget)) // processes)
    # The smallest bound that needs no more passes makes them even.
    low, high = longest, budget
    while low < high:
        middle = (low + high) // 2
        if len(_cut(samples, order, middle)) <= rounds * processes:
            high = middle
        else:
            low = middle + 1
    passes = [Pass(tuple(part)) for part in _cut(samples, order, high)]
    passes += [Pass((shortest,), counts=False)] * (rounds * processes - len(passes))
    return [passes[process::processes] for process in range(processes)]


def _families(samples: Sequence[Sample], which: Iterable[int]) -> list[list[int]]:
    """Samples with the same prompt, in the order in which they come first."""
    found: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for i in which:
        if not samples[i].prompt:
            raise ValueError(f"item {samples[i].item}: a prompt has at least one token")
        found.setdefault((samples[i].group, samples[i].prompt), []).append(i)
    return list(found.values())


def _alone(sample: Sample) -> int:
    """Tokens that go through the model of a sample: the last one of its completion does not."""
    return sample.length - 1


def _cut(samples: Sequence[Sample], order: Sequence[int], bound: int) -> list[list[int]]:
    """The order in parts of at most so many tokens, a prompt counted once in each."""
    parts: list[list[int]] = []
    size = bound + 1
    for place, i in enumerate(order):
        prompt = samples[i].prompt
        shared = place > 0 and samples[order[place - 1]].prompt == prompt
        own = _alone(samples[i])
        more = own - len(prompt) if shared else own
        if size + more > bound:
            parts.append([])
            size, more = 0, own
        parts[-1].append(i)
        size += more
    return parts


@dataclass
class _Segment:
    start: int
    length: int
    keys: list[range]

    @property
    def seen(self) -> int:
        return sum(len(part) for part in self.keys)


def layout(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], padded: bool) -> Layout:
    """Lays prompts and completions out.

    Args:
        sequences: (prompt, completion) of each sample. Neighbours with the same prompt share it.
        padded: whether to make `blocks`, for devices without a varlen kernel.

    Returns:
        The layout, on the CPU.
    """
    # Arrays and not lists: a step may have a million tokens, and a GPU waits for them.
    ids, positions, sources, targets = (array("q") for _ in range(4))
    segments: list[_Segment] = []
    first = 0
    while first < len(sequences):
        prompt = sequences[first][0]
        after = first + 1
        while after < len(sequences) and sequences[after][0] == prompt:
            after += 1
        begin = len(ids)
        ids.extend(prompt)
        positions.extend(range(len(prompt)))
        alone = after == first + 1
        shared = range(begin, begin + len(prompt))
        if not alone:
            segments.append(_Segment(begin, len(prompt), [shared]))
        for _, completion in sequences[first:after]:
            start, more = len(ids), len(completion) - 1
            ids.extend(completion[:-1])
            positions.extend(range(len(prompt), len(prompt) + more))
            sources.append(begin + len(prompt) - 1)
            sources.extend(range(start, start + more))
            targets.extend(completion)
            if alone:
                whole = range(begin, start + more)
                segments.append(_Segment(begin, len(whole), [whole]))
            elif more:
                segments.append(_Segment(start, more, [shared, range(start, start + more)]))
        first = after
    lengths = [len(completion) for _, completion in sequences]
    spread = array("q")
    if any(len(segment.keys) > 1 for segment in segments):
        for part in (part for segment in segments for part in segment.keys):
            spread.extend(part)
    blocks, unpadded = _blocks(segments, len(ids)) if padded else ((), None)
    return Layout(
        ids=_tensor(ids),
        positions=_tensor(positions),
        sources=_tensor(sources),
        targets=_tensor(targets),
        sequence=torch.repeat_interleave(torch.tensor(lengths)),
        queries=_begins([segment.length for segment in segments]),
        keys=_begins([segment.seen for segment in segments]),
        spread=_tensor(spread) if spread else None,
        longest_query=max(segment.length for segment in segments),
        longest_keys=max(segment.seen for segment in segments),
        blocks=blocks,
        unpadded=unpadded,
    )


def _tensor(numbers: array[int]) -> Tensor:
    return torch.frombuffer(numbers, dtype=torch.int64)


def _begins(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def _blocks(segments: Iterable[_Segment], tokens: int) -> tuple[tuple[Block, ...], Tensor]:
    whole = sorted((s for s in segments if len(s.keys) == 1), key=lambda s: s.seen)
    tails = sorted((s for s in segments if len(s.keys) > 1), key=lambda s: (s.seen, s.length))
    blocks = []
    unpadded = torch.empty(tokens, dtype=torch.int64)
    end = 0
    for rows in (*_alike(whole), *_alike(tails)):
        width = max(row.length for row in rows)
        for number, row in enumerate(rows):
            at = end + number * width
            unpadded[row.start : row.start + row.length] = torch.arange(at, at + row.length)
        end += len(rows) * width
        blocks.append(_block(rows, width))
    return tuple(blocks), unpadded


def _alike(segments: Iterable[_Segment]) -> Iterator[list[_Segment]]:
    """Neighbours whose lengths are near enough for one block."""
    rows: list[_Segment] = []
    for segment in segments:
        if rows and segment.seen > max(rows[0].seen * WASTE, rows[0].seen + CLOSE):
            yield rows
            rows = []
        rows.append(segment)
    if rows:
        yield rows


def _block(rows: list[_Segment], width: int) -> Block:
    height = max(row.seen for row in rows)
    queries, keys = [], []
    for row in rows:
        queries.append([*range(row.start, row.start + row.length)])
        queries[-1] += [row.start] * (width - row.length)
        keys.append([i for part in row.keys for i in part])
        keys[-1] += [row.start] * (height - row.seen)
    if all(len(row.keys) == 1 for row in rows):
        mask = None
    else:
        before = torch.tensor([row.seen - row.length for row in rows])
        last = before[:, None] + torch.arange(width)
        mask = (torch.arange(height) <= last[:, :, None])[:, None]
    return Block(torch.tensor(queries), torch.tensor(keys), mask)
