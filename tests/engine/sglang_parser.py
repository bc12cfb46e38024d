"""Ask SGLang's own argument parser. Runs in the engine environment, not in the tests' one.

Reads one JSON object, `{"lines": [[ARGUMENT, ...], ...]}`, on standard input and writes one,
`{"refusals": [REASON or null, ...], "options": {"--flag": "destination", ...}}`. A line is parsed
as by a real launch, except that SGLang must not guess at abbreviated names, and its sizes are
checked as far as that goes without the model and the GPU.
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
    except ValueError as error:
        return str(error)
    if arguments.tp_size % arguments.ep_size or arguments.tp_size % arguments.attn_dp_size:
        return "expert or attention ranks do not divide the tensor group"
    return None


def main() -> None:
    """Answer the one question on standard input."""
    question = json.load(sys.stdin)
    options = {
        option: action.dest for action in make_parser()._actions for option in action.option_strings
    }
    refusals = [refusal(line) for line in question["lines"]]
    json.dump({"refusals": refusals, "options": options}, sys.stdout)


if __name__ == "__main__":
    main()
