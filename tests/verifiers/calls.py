"""What the tests have worker processes do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def same(value: object) -> object:
    return value


def pid() -> int:
    return os.getpid()


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def hang() -> None:
    while True:
        pass


def hang_and_tell(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    hang()


def leave(code: int) -> None:
    os._exit(code)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def allocate(mebibytes: int) -> int:
    return len(bytearray(mebibytes << 20))


def fail(text: str) -> None:
    raise ValueError(text)


def fail_with_its_own() -> None:
    class Special(Exception):
        pass

    raise Special("of its own kind")


def give_an_object() -> object:
    return Path("x")


def say(text: str) -> None:
    print(text, flush=True)
