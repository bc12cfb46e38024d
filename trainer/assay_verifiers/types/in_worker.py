"""What the types that judge in worker processes share."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from assay_verifiers.contract import Status, Unavailable, Verdict, error, timeout
from assay_verifiers.registry import Bench
from assay_verifiers.workers import WorkerDied, WorkerTimeout


def need(module: str, package: str, type_: str) -> None:
    """Refuses to make a verifier whose worker processes could not work.

    The module itself is not imported: only workers pay for that.

    Raises:
        Unavailable: it is not installed.
    """
    if find_spec(module) is None:
        raise Unavailable(
            f"verifier type {type_!r} needs the package {package!r}: pip install 'assay[verifiers]'"
        )


async def judged(
    bench: Bench, seconds: float, judge: Callable[..., Verdict], *args: Any
) -> Verdict:
    """The verdict of a function that is called in a worker process.

    Args:
        bench: whose workers.
        seconds: the call's deadline.
        judge: a function at the top of a module.
        args: its arguments, plain data.
    """
    try:
        score, status, detail = await bench.workers.call(seconds, _as_data, judge, args)
    except WorkerTimeout as reason:
        return timeout(str(reason))
    except WorkerDied as reason:
        return error(str(reason))
    return Verdict(score, status, detail)


# A worker's result may be plain data only.
def _as_data(judge: Callable[..., Verdict], args: tuple[Any, ...]) -> tuple[float, Status, str]:
    verdict = judge(*args)
    return verdict.score, verdict.status, verdict.detail
