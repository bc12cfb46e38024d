"""Ask SGLang's own argument parser. Runs in the engine environment, not in the tests' one.

Reads one JSON object, `{"lines": [[ARGUMENT, ...], ...]}`, on standard input and writes one,
`{"refusals": [REASON or null, ...], "options": {"--flag": "destination", ...}}`, as the last line
of its output. Each line goes as far as a launch goes without weights and without a GPU: it is
parsed (without guesses at abbreviated names), and resolved against the config.json of the model
that it names, which is where SGLang checks sizes and chooses backends.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import NoReturn

from sglang.srt.server_args import ServerArgs


class Parser(argparse.ArgumentParser):
    """A parser that raises where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def make_parser() -> Parser:
    """SGLang's parser, strict about spelling."""
    parser = Parser(prog="sglang", allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    return parser


def refusal(line: list[str]) -> str | None:
    """Why SGLang refuses an argument line, or None."""
    try:
        arguments = ServerArgs.from_cli_args(make_parser().parse_args(line))
        arguments.resolve_once()
        arguments.check_server_args()
    except Exception as error:  # SGLang refuses with whatever it has at hand
        return f"{type(error).__name__}: {error}"
    return None


def main() -> None:
    """Answer the one question on standard input."""
    question = json.load(sys.stdin)
    options = {
        option: action.dest for action in make_parser()._actions for option in action.option_strings
    }
    refusals = [refusal(line) for line in question["lines"]]
    print(json.dumps({"refusals": refusals, "options": options}))


if __name__ == "__main__":
    main()
