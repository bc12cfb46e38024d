"""What is asked, as prompts of token ids: a job's items through its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from assay_trainer.batch import Prompt
from assay_trainer.items import DataError, Items, open_source
from assay_trainer.job import Job
from assay_trainer.settings import Data
from assay_verifiers.config import VerifierModel
from assay_verifiers.suites import SuiteItem

HELD_OUT_SIZE = 200
"""Items of an evaluation whose source makes them and does not say how many."""

_CHUNK = 1000
_MOST_PROBLEMS = 20


class Prompts:
    """Items as engines get them.

    Args:
        items: the items.
        tokenizer: a Hugging Face tokenizer.
        settings: the job's `data`.
        max_tokens: of a completion.
        context: the most tokens of prompt and completion together; None: no bound is known.

    Raises:
        DataError: the tokenizer has no chat template though the job wants one.
    """

    def __init__(
        self,
        items: Items,
        tokenizer: Any,
        settings: Data,
        *,
        max_tokens: int,
        context: int | None,
    ) -> None:
        if settings.chatTemplate and not tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template: put chat_template.jinja into model.path, or "
                "set data.chatTemplate to false"
            )
        self._items = items
        self._tokenizer = tokenizer
        self._chat = settings.chatTemplate
        self._longest = settings.maxPromptTokens
        self._max_tokens = max_tokens
        self._context = context

    def __len__(self) -> int:
        """How many different prompts there are."""
        return len(self._items)

    def prompt(self, number: int) -> Prompt:
        """The prompt with a number in the endless order.

        Raises:
            DataError: it is too long, the chat template refuses it, or it could not be made.
        """
        item = self._items.item(number)
        ids = self._encoded([self._text(item)])[0]
        if problem := self._problem(ids):
            raise DataError(f"item {item.id}: {problem}")
        return Prompt(number, tuple(ids), item.task(), item.verifier)

    def check(self) -> None:
        """Makes the prompts of all of a suite's items, or one of a generator's.

        Raises:
            DataError: some cannot be used; a line for each, up to twenty.
        """
        problems: list[str] = []
        items: list[SuiteItem] = []
        texts: list[str] = []

        def encode() -> None:
            for item, ids in zip(items, self._encoded(texts), strict=True):
                if problem := self._problem(ids):
                    problems.append(f"item {item.id}: {problem}")
            items.clear()
            texts.clear()

        for item in self._items.known():
            try:
                texts.append(self._text(item))
            except DataError as reason:
                problems.append(str(reason))
                continue
            items.append(item)
            if len(items) == _CHUNK:
                encode()
        if items:
            encode()
        if more := problems[_MOST_PROBLEMS:]:
            problems[_MOST_PROBLEMS:] = [f"and {len(more)} more"]
        if problems:
            raise DataError("\n".join(problems))

    def verifiers(self) -> Iterator[VerifierModel]:
        """Who judges them, for `Bench.check`: that of every item that is known before the run."""
        return (item.verifier for item in self._items.known())

    def _text(self, item: SuiteItem) -> str:
        if not self._chat:
            if item.prompt is None:
                raise DataError(
                    f"item {item.id}: it has messages, which need data.chatTemplate true"
                )
            return item.prompt
        if item.messages is None:
            messages = [{"role": "user", "content": item.prompt}]
        else:
            messages = [message.model_dump(exclude_none=True) for message in item.messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        except Exception as reason:  # whatever a template raises
            raise DataError(f"item {item.id}: the chat template refuses it: {reason}") from reason
        return text

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        # A chat template writes the special tokens itself; of plain text the tokenizer knows best.
        ids: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=not self._chat, return_attention_mask=False, verbose=False
        )["input_ids"]
        return ids

    def _problem(self, ids: Sequence[int]) -> str | None:
        if not ids:
            return "the prompt has no token"
        if len(ids) > self._longest:
            return (
                f"the prompt has {len(ids)} tokens, more than data.maxPromptTokens "
                f"{self._longest}: raise it, or take the item out"
            )
        if self._context is not None and len(ids) + self._max_tokens > self._context:
            return (
                f"{len(ids)} tokens of prompt and rollout.maxTokens {self._max_tokens} are more "
                f"than the context of {self._context}: shorten either"
            )
        return None


def training_prompts(job: Job, tokenizer: Any, context: int | None) -> Prompts:
    """What a job trains on, all of it checked that can be.

    Raises:
        DataError: it cannot be used; the message says which item and why.
    """
    with _field("data.source"):
        source = open_source(job.data.source, job.data.split, job.verifier, seed=job.seed)
    items = Items(source, seed=job.seed, shuffle=job.data.shuffle)
    prompts = _prompts(job, items, tokenizer, context)
    with _field("data.source"):
        prompts.check()
    return prompts


def held_out(job: Job, tokenizer: Any, context: int | None) -> tuple[Prompt, ...]:
    """The prompts that a job's evaluation asks, in the source's order; empty without evaluation.

    Raises:
        DataError: they cannot be used; the message says which item and why.
    """
    if job.evaluation is None:
        return ()
    suite, split = job.evaluation.suite, job.evaluation.split
    with _field("evaluation.suite"):
        source = open_source(suite, split, job.verifier, seed=job.seed, size=HELD_OUT_SIZE)
    prompts = _prompts(job, Items(source, seed=0, shuffle=False), tokenizer, context)
    with _field("evaluation.suite"):
        prompts.check()
        return tuple(prompts.prompt(number) for number in range(len(prompts)))


def _prompts(job: Job, items: Items, tokenizer: Any, context: int | None) -> Prompts:
    return Prompts(items, tokenizer, job.data, max_tokens=job.rollout.maxTokens, context=context)


@contextmanager
def _field(name: str) -> Iterator[None]:
    """Puts the job's field before each line of a DataError."""
    try:
        yield
    except DataError as reason:
        lines = str(reason).splitlines()
        raise DataError("\n".join(f"{name}: {line}" for line in lines)) from reason


def load_tokenizer(folder: Path) -> Any:
    """A model folder's tokenizer. No code that the folder may hold is run, nothing is downloaded.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"model.path: {folder} is not a folder")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as reason:  # the tokenizers package raises plain Exception
        why = " ".join(str(reason).split())
        raise DataError(
            f"model.path: the tokenizer in {folder} cannot be loaded ({why}): it takes "
            "tokenizer.json and tokenizer_config.json, as save_pretrained writes them"
        ) from reason


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Completions as verifiers get them: without special tokens, and nothing tidied up."""

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    return decode
