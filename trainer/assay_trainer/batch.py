"""What passes from the engines to the learner: prompts, completions, judged samples. Plain data.

Token ids and log-probs are kept as the engine gave them; nothing is ever tokenised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from assay_verifiers.config import VerifierModel
from assay_verifiers.contract import Status, Task

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """A question as the engine gets it.

    Attributes:
        number: its place in the endless order of items, from 0.
        ids: token ids.
        task: what the verifier may know.
        verifier: who judges the completions.
    """

    number: int
    ids: tuple[int, ...]
    task: Task
    verifier: VerifierModel


@dataclass(frozen=True)
class Completion:
    """What an engine drew.

    Attributes:
        ids: token ids, the end-of-text token included where it was drawn.
        log_probs: the engine's, of each token, at the temperature that it was drawn with.
        versions: the weights that drew each token.
        finish: `length` where a limit cut it off.

    Raises:
        ValueError: the lengths differ, or there is no token.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    versions: tuple[str, ...]
    finish: Finish

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.log_probs) == len(self.versions):
            raise ValueError("ids, log_probs and versions differ in length")
        if not self.ids:
            raise ValueError("a completion has at least one token")


@dataclass(frozen=True)
class Sample:
    """A completion that was judged.

    Attributes:
        item: the item's id.
        number: the prompt's place in the order of items.
        group: samples of one prompt have one number, from 0 in each batch.
        prompt: token ids.
        completion: what was drawn.
        reward: in [0, 1]; 0 where it was not judged.
        status: the verifier's.
        judged: False where nothing may be concluded: status `timeout` or `error`, or a truncated
            completion that the job masks. It then has no part in advantages or loss.
    """

    item: str
    number: int
    group: int
    prompt: tuple[int, ...]
    completion: Completion
    reward: float
    status: Status
    judged: bool

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion.ids)


@dataclass(frozen=True)
class Batch:
    """The samples of one step, whole groups in order of `group`.

    Attributes:
        step: the step that learns from it, from 1.
        samples: of all processes together.
        position: the first item number that no batch up to this one has used.
        metrics: of how it was made: seconds, tokens, counts.
    """

    step: int
    samples: tuple[Sample, ...]
    position: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """How many prompts it has."""
        return len({sample.group for sample in self.samples})


class Generates(Protocol):
    """What draws completions: `engines.Engines`."""

    async def generate(
        self, ids: Sequence[int], *, n: int, max_tokens: int, temperature: float
    ) -> Sequence[Completion]:
        """Draws n completions of a prompt; temperature 0 is greedy. It bounds itself how many
        requests are under way.

        Raises:
            Exception: no engine could; whatever was worth trying again was tried.
        """
