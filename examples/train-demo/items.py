#!/usr/bin/env python3
"""The numbers that the small task sorts: questions, their one right answer, and suites of them.

    python items.py --name solver-heldout > examples/demo/suite.yaml

prints the held-out items as a ConfigMap, for jobs and gates on a cluster. Standard library only:
the same seed gives the same items everywhere.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

NUMBERS = [str(number) for number in range(50)]
LENGTH = 6
TRAINED, HELD_OUT = 8192, 200
VERIFIER = {"type": "regex", "mode": "full", "pattern": "([0-9 ]+)", "group": 1}
MAX_TOKENS = 2 * LENGTH
SEED = 1

Question = tuple[str, ...]
"""Different numbers, in the order in which they are given."""


def prompt(question: Question) -> str:
    """What the user says."""
    return f"sort {' '.join(question)}"


def answer(question: Question, *, downwards: bool = False) -> str:
    """The one right answer; downwards, the wrong one that is most like it."""
    return " ".join(sorted(question, key=int, reverse=downwards))


def questions(seed: int) -> tuple[list[Question], list[Question]]:
    """Those that are trained on, and those held out: disjoint by their answers."""
    drawn = random.Random(seed)
    held_out: dict[str, Question] = {}
    while len(held_out) < HELD_OUT:
        question = tuple(drawn.sample(NUMBERS, LENGTH))
        held_out.setdefault(answer(question), question)
    trained: dict[Question, None] = {}
    while len(trained) < TRAINED:
        question = tuple(drawn.sample(NUMBERS, LENGTH))
        if answer(question) not in held_out:
            trained[question] = None
    return list(trained), list(held_out.values())


def suite(name: str, found: list[Question]) -> str:
    """A suite of assay_verifiers as JSON lines: the header names the judge of all items."""
    lines: list[dict[str, Any]] = [
        {"suite": f"sorting-{name}", "verifier": VERIFIER, "maxTokens": MAX_TOKENS}
    ]
    lines += [
        {"id": "-".join(one), "prompt": prompt(one), "reference": {"value": answer(one)}}
        for one in found
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def config_map(name: str, seed: int) -> str:
    """The held-out items as a ConfigMap in YAML, under the key where jobs and gates look for it."""
    lines = suite("heldout", questions(seed)[1]).splitlines()
    head = [
        "# Made by examples/train-demo/items.py: what the model is asked to be weighed, and never",
        "# learns from.",
        "apiVersion: v1",
        "kind: ConfigMap",
        f"metadata: {{name: {name}}}",
        "data:",
        "  suite.jsonl: |",
    ]
    return "".join(f"{line}\n" for line in [*head, *(f"    {line}" for line in lines)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Print the held-out items as a ConfigMap.")
    parser.add_argument("--name", required=True, help="of the ConfigMap")
    parser.add_argument("--seed", type=int, default=SEED, help="of the items")
    arguments = parser.parse_args()
    print(config_map(arguments.name, arguments.seed), end="")


if __name__ == "__main__":
    main()
