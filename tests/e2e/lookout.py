"""Runs in the client pod: notes what routers list, and what those engines say that they have.

    python3 lookout.py FILE ROUTER_ADDRESS...

Each line of FILE is one look at one router: `at`, in seconds since the epoch, and `listed`, the
version that each listed worker reports (null where it does not answer) by its URL; null where the
router does not answer. A worker counts as listed where it is so before and after it was asked: what
an engine says once it is out of the list says nothing about the list.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException

METRICS_PORT = 29000
EVERY_SECONDS = 0.5
_WORKER = re.compile(r'^smg_worker_health\{[^}]*worker="([^"]+)"', re.MULTILINE)

Get = Callable[[str], str]
"""Answers a URL, or raises one of SILENCE."""
SILENCE = (OSError, HTTPException, ValueError)


def workers(metrics: str) -> list[str]:
    """The URLs of all workers that a router's metrics page tells of, well or not."""
    return [url.rstrip("/") for url in _WORKER.findall(metrics)]


def get(url: str) -> str:
    """What is answered within two seconds."""
    with urllib.request.urlopen(url, timeout=2) as answer:
        return str(answer.read().decode())


def version(url: str, ask: Get = get) -> str | None:
    """The version of the weights that an engine reports."""
    try:
        return str(json.loads(ask(f"{url}/model_info"))["weight_version"])
    except (*SILENCE, KeyError):
        return None


def look(router: str, ask: Get = get) -> dict[str, str | None] | None:
    """What a router lists, by what it reports; None where the router does not answer."""
    page = f"http://{router}:{METRICS_PORT}/metrics"
    try:
        before = workers(ask(page))
        found = {url: version(url, ask) for url in before}
        after = workers(ask(page))
    except SILENCE:
        return None
    return {url: found[url] for url in before if url in after}


def main() -> None:
    """Looks until it is killed."""
    path, *routers = sys.argv[1:]
    with open(path, "w", buffering=1, encoding="utf-8") as out:  # noqa: PTH123
        while True:
            for router in routers:
                at = time.time()
                print(json.dumps({"at": at, "listed": look(router)}), file=out)
            time.sleep(EVERY_SECONDS)


if __name__ == "__main__":
    main()
