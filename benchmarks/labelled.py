"""Mathematical completions whose truth is known: labelled solutions of GSM8K, made expressions."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.cluster.settings import REPOSITORY

GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k_labelled_solutions_660.jsonl"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@dataclass(frozen=True)
class Labelled:
    """A completion whose truth is known."""

    name: str
    reference: str
    completion: str
    correct: bool


def gsm8k() -> list[Labelled]:
    """The 2,640 labelled solutions: four models on 660 problems."""
    problems = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    return [
        Labelled(
            f"problem {number}, {model}",
            problem["ground_truth"],
            problem[model]["solution"],
            problem[model]["is_correct"],
        )
        for number, problem in enumerate(problems, 1)
        for model in MODELS
    ]


def expressions(count: int, kinds: Sequence[int] = range(7), seed: int = 1) -> list[Labelled]:
    """Made LaTeX answers that are no plain numbers, half of them wrong, as MATH has them."""
    pick = random.Random(seed)
    found = []
    for number in range(count):
        a, b, c = pick.randint(2, 40), pick.choice((2, 3, 5, 7, 11)), pick.randint(41, 80)
        correct = number % 2 == 0
        d = a if correct else a + 1
        reference, answer = (
            (rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}", rf"\frac{{{d}}}{{{c}}} \sqrt{{{b}}}"),
            (rf"(x+{a})(x-{c})", rf"x^2 - {c - d}x - {d * c}"),
            (rf"\left({a}, \frac{{{b}}}{{{c}}}\right)", rf"({d}, {b}/{c})"),
            (rf"\{{{a}, {c}\}}", rf"\{{{c}, {d}\}}"),
            (rf"(-\infty, {a}] \cup [{c}, \infty)", rf"(-\infty, {d}] \cup [{c}, \infty)"),
            (rf"\frac{{{a}\pi}}{{{c}}}", rf"\frac{{{d}}}{{{c}}}\pi"),
            (rf"{a} + {b}\sqrt{{3}}", rf"{b}\sqrt{{3}} + {d}"),
        )[kinds[number // 2 % len(kinds)]]
        text = f"We simplify step by step and so the final answer is $\\boxed{{{answer}}}$."
        found.append(Labelled(f"expression {number}", f"\\boxed{{{reference}}}", text, correct))
    return found
