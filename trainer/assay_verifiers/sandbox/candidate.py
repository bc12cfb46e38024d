"""What runs in the candidate's process once it is locked down: the program, and no judgement of it.

A program that tampers with anything here only spoils its own answers.
"""

from __future__ import annotations

import atexit
import builtins
import os
import sys
import threading
import traceback
from types import ModuleType
from typing import Any

from .extract import function_program
from .plain import EndedError, NotPlainError, decode, encode, receive, send


def serve_function(program: dict[str, Any], requests: int, replies: int) -> None:
    """Loads the program and answers calls of its function until the tester ends.

    Args:
        program: `entry` (the function's name), `file` (for error messages) and either `code` or
            `completion` and `prompt`, in which the code is to be found.
        requests, replies: pipes from and to the tester.
    """
    code = program.get("code")
    if code is None:
        code = function_program(program["completion"], program["prompt"], program["entry"])
    if code is None:
        send(replies, {"unparsed": "no Python code"})
        return
    module = ModuleType("candidate")
    sys.modules[module.__name__] = module
    try:
        exec(compile(code, program["file"], "exec", dont_inherit=True), module.__dict__)
    except BaseException as reason:
        send(replies, {"fault": _text(reason, program["file"])})
        return
    function = module.__dict__.get(program["entry"])
    if not callable(function):
        send(replies, {"fault": f"it defines no function {program['entry']}"})
        return
    send(replies, {"ready": True})
    while True:
        try:
            request = receive(requests)
        except EndedError:
            return
        arguments, named = decode(request)
        send(replies, _answer(function, arguments, named, program["file"]))


def _answer(function: Any, arguments: Any, named: Any, file: str) -> dict[str, Any]:
    try:
        value = function(*arguments, **named)
    except Exception as reason:
        names = [kind.__name__ for kind in type(reason).__mro__ if kind.__module__ == "builtins"]
        try:
            details = encode(list(reason.args))
        except (NotPlainError, RecursionError):
            details = [str(reason)]
        return {"raised": names, "args": details, "text": _text(reason, file)}
    except BaseException as reason:
        return {"fault": _text(reason, file)}
    try:
        return {"value": encode(value)}
    except NotPlainError as reason:
        return {"fault": f"it returned an object of type {reason}, which is not plain data"}
    except RecursionError:
        return {"fault": "it returned a value that is nested too deeply, or within itself"}


def _text(reason: BaseException, file: str) -> str:
    """An exception in one line, with the line of the program that it comes from."""
    lines = [f.lineno for f in traceback.extract_tb(reason.__traceback__) if f.filename == file]
    line = reason.lineno if isinstance(reason, SyntaxError) else lines[-1] if lines else None
    place = f" (line {line})" if line else ""
    return f"{type(reason).__name__}: {reason}"[:500] + place


def run_python(program: dict[str, Any]) -> None:
    """Runs a program as `python FILE` does, in this process; never returns."""
    file = program["file"]
    main = ModuleType("__main__")
    main.__dict__.update(__file__=file, __builtins__=builtins)
    sys.modules["__main__"] = main
    sys.argv = [file]
    streams = [sys.stdout, sys.stderr]
    code = 0
    try:
        exec(compile(program["code"], file, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as leaving:
        code = _exit_code(leaving.code)
    except BaseException as reason:
        # Without the frames of this module, as a program of its own would show it.
        trace = reason.__traceback__.tb_next if reason.__traceback__ else None
        traceback.print_exception(type(reason), reason, trace)
        code = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits as the interpreter's end does
        atexit._run_exitfuncs()
        for stream in (*streams, sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
    except BaseException:
        code = code or 120  # as the interpreter's end: standard output could not be written
    os._exit(code)


def _exit_code(value: object) -> int:
    if value is None:
        return 0
    if isinstance(value, int):
        return value & 0xFF
    print(value, file=sys.stderr)
    return 1


def run_command(program: dict[str, Any]) -> None:
    """Replaces this process by a command, the program's text in a file; never returns."""
    file = os.path.abspath(program["file"])
    with open(file, "w", encoding="utf-8", errors="surrogatepass") as target:
        target.write(program["code"])
    command = [word.replace("{file}", file) for word in program["command"]]
    os.execvp(command[0], command)
