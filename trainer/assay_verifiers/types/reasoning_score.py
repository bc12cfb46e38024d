"""reasoning-gym's own scorers, kept from running what they score. Runs in a worker process."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from reasoning_gym import get_score_answer_fn

from assay_verifiers.contract import Verdict, error, ok, unparsed, wrong

_LONGEST_ANSWER = 1 << 16

# Some scorers hand the answer to eval(), themselves or through sympy.parse_expr: a completion would
# be run as code in this process. Their answers must be of a form that can do no harm. The lists
# hold for the version that pyproject.toml pins; a test compares them with its sources.
EVALUATES_LITERALS = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
EVALUATES_EXPRESSIONS = frozenset(
    {
        "countdown",
        "intermediate_integration",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
    }
)
# An answer to nothing: a scorer that accepts it accepts anything (reasoning-gym#478).
_CANARY = "no answer at all"
_WORDS = re.compile(r"[A-Za-z0-9_\s]*", re.ASCII)
# No quote, bracket, underscore or attribute: a point only within a number.
_EXPRESSION = re.compile(r"(?:\s|[0-9]+(?:\.[0-9]*)?|\.[0-9]+|[-+*/^(),]|[A-Za-z]+)*", re.ASCII)
_NUMBER = re.compile(
    r"[-+]?[0-9]{1,100}(?:/[0-9]{1,100}|(?:\.[0-9]{0,100})?(?:[eE][-+]?[0-9]{1,3})?)", re.ASCII
)
_NAME = re.compile(r"[A-Za-z]+", re.ASCII)
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "asin", "acos", "atan"}
    | {"exp", "log", "ln", "sqrt", "Abs", "pi"}
)


def answer_of(completion: str) -> str:
    """What a completion gives as its answer: the last <answer>...</answer>, else the last
    \\boxed{...}, else its last line."""
    end = completion.rfind("</answer>")
    start = completion.rfind("<answer>", 0, end) if end >= 0 else -1
    if start >= 0:
        return completion[start + len("<answer>") : end].strip()
    if (boxed := _boxed(completion)) is not None:
        return boxed.strip()
    return completion.strip().rpartition("\n")[2].strip()


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : start + match.start()]
    return None


def harmless(dataset: str, answer: str) -> bool:
    """Whether a dataset's scorer can be given an answer without running it as code."""
    if dataset in EVALUATES_LITERALS:
        return _WORDS.fullmatch(answer) is not None or _is_literal(answer)
    if dataset in EVALUATES_EXPRESSIONS:
        return _EXPRESSION.fullmatch(answer) is not None and all(
            len(name) == 1 or name in _FUNCTIONS for name in _NAME.findall(answer)
        )
    return True


def _near(answer: str, entry: dict[str, Any]) -> bool:
    value, own = _fraction(answer), _fraction(entry["answer"])
    return value is not None and own is not None and abs(value - own) <= abs(own) / 100


def _same_number(answer: str, entry: dict[str, Any]) -> bool:
    value = _fraction(re.sub(r"[$,%\s]", "", answer))
    return value is not None and value == _fraction(str(entry["answer"]).replace(",", ""))


def _same_words(answer: str, entry: dict[str, Any]) -> bool:
    return answer.lower().split() == str(entry["answer"]).lower().split()


def _uses_its_numbers(answer: str, entry: dict[str, Any]) -> bool:
    used = [int(digits) for digits in re.findall(r"[0-9]+", answer)]
    return sorted(used) == sorted(entry["metadata"]["numbers"])


# Scorers that give their full score to wrong answers: to the first digits of a probability, to a
# number with another sign or with others beside it, to a sentence with words too many, to 24 made
# of other numbers. What they accept must also hold here.
_STRICTER: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "coin_flip": _near,
    "gsm_symbolic": _same_number,
    "letter_jumble": _same_words,
    "puzzle24": _uses_its_numbers,
}


def _fraction(text: str) -> Fraction | None:
    if _NUMBER.fullmatch(text.strip()) is None:
        return None
    try:
        return Fraction(text.strip())
    except ZeroDivisionError:
        return None


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


@lru_cache(maxsize=128)
def _scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    scorer: Callable[[str, dict[str, Any]], float] = get_score_answer_fn(dataset)
    return scorer


def score(
    dataset: str, entry: dict[str, Any], completion: str, threshold: float, partial: bool
) -> Verdict:
    """Judges one completion by the scorer of its dataset.

    Args:
        dataset: its name in reasoning-gym.
        entry: the item as the dataset made it: `question`, `answer`, `metadata`.
        completion: the model's text.
        threshold: the score from which an answer is ok.
        partial: whether a lower score is kept.
    """
    answer = answer_of(completion)
    if not 0 < len(answer) <= _LONGEST_ANSWER:
        return unparsed(f"an answer has 1 to {_LONGEST_ANSWER} characters, not {len(answer)}")
    if not harmless(dataset, answer):
        return wrong("the answer is not of the form that the task asks for")
    try:
        value, objection = _judged(dataset, answer, entry, threshold)
    except Exception as defect:
        return _defect(dataset, entry, defect)
    if objection is not None:
        return wrong(objection)
    if value >= threshold:
        return ok(f"{dataset}: {value:g}", value)
    below = f"{dataset}: {value:g}, below the threshold of {threshold:g}"
    return wrong(below, value if partial else 0.0)


class _Broken(Exception):
    """A scorer rejects the answer that the task came with."""


def _judged(
    dataset: str, answer: str, entry: dict[str, Any], threshold: float
) -> tuple[float, str | None]:
    """What a scorer gives, and what there is against it."""
    value = _value(dataset, answer, entry)
    if value < threshold and not _accepts_its_own(dataset, entry, threshold):
        # Suites are JSON, and some scorers compare with the tuples that they once made.
        entry = _with_tuples(entry)
        if not _accepts_its_own(dataset, entry, threshold):
            raise _Broken(f"{dataset} does not accept the task's own answer")
        value = _value(dataset, answer, entry)
    if value < threshold or answer == entry["answer"]:
        return value, None
    if _value(dataset, _CANARY, entry) >= threshold:
        return value, f"{dataset} accepts any text here, so only the task's own answer counts"
    if dataset in _STRICTER and not _STRICTER[dataset](answer, entry):
        return value, f"{dataset} accepts it, but the task does not"
    return value, None


def _value(dataset: str, answer: str, entry: dict[str, Any]) -> float:
    value = float(_scorer(dataset)(answer, entry))
    if not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"it gave {value}")
    return value


def _accepts_its_own(dataset: str, entry: dict[str, Any], threshold: float) -> bool:
    """Whether a scorer accepts the answer that the task came with; True where there is none."""
    own = entry["answer"]
    return not isinstance(own, str) or _value(dataset, own, entry) >= threshold


def _defect(dataset: str, entry: dict[str, Any], defect: Exception) -> Verdict:
    """A scorer raised. Some do at what they cannot read; only where one cannot judge the task's own
    answer, or any text, is the item to blame: else any garbage would get itself masked."""
    if isinstance(defect, _Broken):
        return error(f"the item is broken: {defect}")
    said = f"the scorer of {dataset} failed: {type(defect).__name__}: {defect}"
    own = entry["answer"]
    try:
        _value(dataset, own if isinstance(own, str) else _CANARY, entry)
    except Exception:
        return error(said)
    return unparsed(said)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return value
