"""Type `regex`: RE2. Its time is linear in the text, so it runs in process without a deadline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from assay_verifiers.config import RegexVerifier
from assay_verifiers.contract import Task, Verdict, Verifier, error, ok, unparsed, wrong
from assay_verifiers.registry import Bench

MAX_CHARACTERS = 1 << 17


@lru_cache(maxsize=1024)
def compiled(pattern: str, ignore_case: bool) -> Any:
    """A pattern.

    Raises:
        ValueError: it is none; says what is wrong with it and where.
    """
    options = re2.Options()
    options.case_sensitive = not ignore_case
    options.log_errors = False
    try:
        return re2.compile(pattern, options=options)
    except (re2.error, UnicodeEncodeError) as reason:
        text = reason.args[0] if reason.args else ""
        message = text.decode(errors="replace") if isinstance(text, bytes) else str(reason)
        part = message.rpartition(": ")[2]
        where = f" at character {pattern.find(part)}" if part and part in pattern else ""
        raise ValueError(f"the pattern is none{where}: {message}") from None


@dataclass(frozen=True)
class _Regex:
    model: RegexVerifier

    async def verify(self, task: Task, completion: str) -> Verdict:
        given = task.reference if isinstance(task.reference, dict) else {"value": task.reference}
        value = given.get("value")
        try:
            expression = self._expression(given.get("pattern", self.model.pattern))
        except ValueError as reason:
            return error(str(reason))
        if self.model.group is not None and not isinstance(value, str | int | float):
            return error("the reference holds no value for the group")
        if len(completion) > MAX_CHARACTERS:
            return unparsed(f"the text has {len(completion)} characters: {MAX_CHARACTERS} at most")
        if not completion.strip():
            return unparsed("the text is empty")
        find = expression.fullmatch if self.model.mode == "full" else expression.search
        try:
            return self._judge(find(completion), value)
        except UnicodeEncodeError:
            return unparsed("the text holds half of a surrogate pair")

    def _expression(self, pattern: Any) -> Any:
        if not isinstance(pattern, str):
            raise ValueError("neither the reference nor the configuration holds a pattern")
        expression = compiled(pattern, self.model.ignoreCase)
        _check_group(expression, self.model.group)
        return expression

    def _judge(self, match: Any, value: Any) -> Verdict:
        if self.model.group is None:
            return ok("matches") if match is not None else wrong("does not match")
        found = match.group(self.model.group) if match is not None else None
        if found is None:
            return unparsed(f"group {self.model.group} is not in the text")
        left, right = found.strip(), str(value).strip()
        if self.model.ignoreCase:
            left, right = left.casefold(), right.casefold()
        if left == right:
            return ok(f"group {self.model.group} is {found[:200]!r}")
        return wrong(f"group {self.model.group} is {found[:200]!r}, not {str(value)[:200]!r}")


def _check_group(expression: Any, group: int | str | None) -> None:
    if isinstance(group, str) and group not in expression.groupindex:
        raise ValueError(f"the pattern has no group {group!r}")
    if isinstance(group, int) and not 0 <= group <= expression.groups:
        raise ValueError(f"the pattern has no group {group}: it has {expression.groups}")


def make(model: RegexVerifier, bench: Bench) -> Verifier:
    """The verifier of a `regex` configuration. Of several matches the first counts.

    Raises:
        ValueError: its pattern is none, or lacks the group.
    """
    if model.pattern is not None:
        _check_group(compiled(model.pattern, model.ignoreCase), model.group)
    return _Regex(model)
