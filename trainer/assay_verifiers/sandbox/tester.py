"""What runs in the tester's process: the tests, which call the candidate through pipes.

The tests are trusted, the candidate's answers are not: they are decoded into plain data here. What
goes wrong is put down to whoever did it: an answer that no test can use is the candidate's, a test
that cannot run at all is the tests'.
"""

from __future__ import annotations

import ast
import builtins
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .extract import prompt_code
from .plain import EndedError, NotPlainError, decode, encode, receive, send

_FILE = "<tests>"
_SHOWN = 300


class _NoAnswer(BaseException):
    """The candidate gave no plain value. No `except Exception` of a test may swallow it."""


class _Broken(BaseException):
    """The tests themselves cannot work."""


class _Proxy:
    """The candidate's function, as the tests see it."""

    def __init__(self, name: str, requests: int, replies: int) -> None:
        self.name, self.requests, self.replies = name, requests, replies
        self.calls = 0
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        self.outcome = ""
        self.value: Any = None
        self.fault = ""
        self.status = "wrong"
        self.raised: BaseException | None = None

    def ready(self) -> None:
        """Waits until the program is loaded.

        Raises:
            _NoAnswer: it cannot be.
        """
        reply = self._receive()
        if "unparsed" in reply:
            self.status = "unparsed"
            self._give_up(_short(reply["unparsed"]))
        if reply.get("ready") is not True:
            self._give_up(_short(reply.get("fault", f"{self.name} is not a function")))

    def call(self, *arguments: Any, **named: Any) -> Any:
        """One call of the candidate's function with copies of the arguments."""
        if self.fault:
            raise _NoAnswer
        try:
            request = encode((arguments, named))
        except (NotPlainError, RecursionError) as reason:
            raise _Broken(f"they pass an argument that is not plain data: {reason}") from reason
        self.calls += 1
        self.arguments, self.outcome = (arguments, named), ""
        try:
            send(self.requests, request)
        except NotPlainError as reason:
            raise _Broken(f"they pass arguments that are too large: {reason}") from reason
        except EndedError:
            self._give_up("it ended before it answered")
        reply = self._receive()
        if isinstance(reply.get("raised"), list):
            self.raised = _exception(reply["raised"], reply.get("args"))
            self.outcome = f" raised {_short(reply.get('text'))}"
            raise self.raised
        if "value" not in reply:
            self._give_up(_short(reply.get("fault")))
        try:
            value = decode(reply["value"])
        except Exception:  # whatever strange forms may bring about
            self._give_up("it answered with what is not plain data")
        self.value, self.outcome = value, " returned "
        return value

    def last(self) -> str:
        """The last call and what came of it; made only when it is asked for, as it can be long."""
        if not self.calls:
            return ""
        arguments, named = self.arguments
        shown = [_short(_represent(a), 80) for a in arguments]
        shown += [f"{name}={_short(_represent(a), 80)}" for name, a in named.items()]
        value = _short(_represent(self.value), 120) if self.outcome == " returned " else ""
        return f"{self.name}({', '.join(shown)}){self.outcome}{value}"

    def _receive(self) -> dict[str, Any]:
        try:
            reply = receive(self.replies)
        except EndedError:
            self._give_up("it ended before it answered")
        except (ValueError, RecursionError, MemoryError):
            self._give_up("it answered with what is no message, or too large")
        if not isinstance(reply, dict):
            self._give_up("it answered with what is no message")
        return reply  # type: ignore[no-any-return]

    def _give_up(self, fault: str) -> None:
        self.fault = fault
        raise _NoAnswer


def _short(text: object, length: int = _SHOWN) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 3] + "..."


def _represent(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # an integer of too many digits, too deep a nesting
        return f"a {type(value).__name__}"


def _exception(names: list[Any], arguments: Any) -> Exception:
    """The nearest builtin exception; its class is looked up here, not sent."""
    try:
        details = decode(arguments)
    except Exception:
        details = []
    for name in names:
        kind = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(*details)
            except Exception:  # it wants other arguments: its parent will do
                continue
    return Exception(_short(details))


def run_tests(tests: dict[str, Any], requests: int, replies: int) -> dict[str, Any]:
    """Runs the tests and says how they went.

    Args:
        tests: `tests` (Python), `entry` (the function's name) and `prompt` (whose helper functions
            the tests may use, where it is Python).
        requests, replies: pipes to and from the candidate.

    Returns:
        `status` (ok, wrong, unparsed, error), `detail` and `calls`.
    """
    proxy = _Proxy(tests["entry"], requests, replies)
    try:
        proxy.ready()
        _run(tests, proxy)
    except _NoAnswer:
        pass
    except _Broken as reason:
        return _verdict("error", f"the tests are broken: {reason}", proxy)
    except BaseException as reason:
        if not proxy.fault:
            status = "wrong" if _of_candidate(reason, proxy) else "error"
            return _verdict(status, _explain(reason, tests["tests"], proxy, status), proxy)
    if proxy.fault:
        place = f"{proxy.last()}: " if proxy.calls else ""
        return _verdict(proxy.status, f"{place}{proxy.fault}", proxy)
    if proxy.calls == 0:
        return _verdict("error", "the tests prove nothing: they never call the function", proxy)
    return _verdict("ok", f"passed, {proxy.calls} calls", proxy)


def _run(tests: dict[str, Any], proxy: _Proxy) -> None:
    def candidate(*arguments: Any, **named: Any) -> Any:
        return proxy.call(*arguments, **named)

    candidate.__name__ = proxy.name
    names: dict[str, Any] = {"__name__": "__tests__"}
    _helpers(prompt_code(tests["prompt"], proxy.name), names)
    names[proxy.name] = names["candidate"] = candidate
    exec(compile(tests["tests"], _FILE, "exec", dont_inherit=True), names)
    check: Callable[[Any], object] | None = names.get("check")
    if check is not None and check is not candidate:
        check(candidate)


def _helpers(prompt: str, names: dict[str, Any]) -> None:
    """Runs a prompt's Python: its imports and complete functions serve the tests."""
    # If it fails and a test needs a name of it, that test says so itself.
    with suppress(Exception):
        exec(compile(prompt, "<prompt>", "exec", dont_inherit=True), names)


def _of_candidate(reason: BaseException, proxy: _Proxy) -> bool:
    """Whether an exception out of the tests speaks against the candidate."""
    if reason is proxy.raised:
        return True
    # Before the first call nothing depends on the candidate; a name that is not there never does.
    return proxy.calls > 0 and not isinstance(
        reason, NameError | ImportError | SyntaxError | SystemExit | KeyboardInterrupt | MemoryError
    )


def _explain(reason: BaseException, tests: str, proxy: _Proxy, status: str) -> str:
    lines = [f.lineno for f in traceback.extract_tb(reason.__traceback__) if f.filename == _FILE]
    statement = _statement(tests, lines[-1]) if lines and lines[-1] else ""
    what = f"{type(reason).__name__}: {_short(reason)}" if str(reason) else type(reason).__name__
    if status == "error":
        return f"the tests are broken: {what}" + (f" at `{statement}`" if statement else "")
    if isinstance(reason, AssertionError) and reason is not proxy.raised:
        what = f"failed: {_short(reason)}" if str(reason) else "failed"
    return f"{what} at `{statement}`; {proxy.last()}"


def _statement(tests: str, line: int) -> str:
    """The innermost statement of the tests on a line, in one line."""
    best: ast.stmt | None = None
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            best = node if best is None or node.lineno >= best.lineno else best
    return _short(ast.get_source_segment(tests, best) or "") if best else ""


def _verdict(status: str, detail: str, proxy: _Proxy) -> dict[str, Any]:
    return {"status": status, "detail": _short(detail, 1500), "calls": proxy.calls}
