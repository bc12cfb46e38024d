"""`python -m assay_operator.activator`: one activator, for one service."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence

from assay_operator.activator import server
from assay_operator.activator.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until it is told to end; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)-7s %(message)s")
    # It would tell of each request that is no HTTP, with a trace of its own code.
    logging.getLogger("aiohttp.server").setLevel("CRITICAL")
    settings = Settings(
        upstream=options.upstream.rstrip("/"),
        model=options.model,
        hold_seconds=options.hold_seconds,
        start_seconds=options.start_seconds,
        finish_seconds=options.finish_seconds,
        requests=options.requests,
        size=options.megabytes << 20,
    )
    try:
        asyncio.run(server.run(settings, options.port, options.status_port))
    except OSError as error:
        print(f"assay-activator: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assay-activator",
        description="Holds a service's requests until a replica is routable.",
    )
    add = parser.add_argument
    add("--upstream", required=True, metavar="URL", help="of the routers, without a path")
    add("--model", required=True, help="the name that clients send")
    add("--port", type=int, default=8000, help="for clients")
    add("--status-port", type=int, default=8080, help="of /healthz, /readyz, /status, /metrics")
    add("--hold-seconds", type=float, default=600, help="a request waits so long at most")
    add("--start-seconds", type=float, default=120, help="what a replica may take to start")
    add("--finish-seconds", type=float, default=180, help="from SIGTERM until the end")
    add("--requests", type=int, default=512, help="that wait at once")
    add("--megabytes", type=int, default=64, help="of their bodies that are kept at once")
    return parser


if __name__ == "__main__":
    sys.exit(main())
