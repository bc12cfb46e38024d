"""Up and down: what the command line and the tests call."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tests.cluster import engine
from tests.cluster.cluster import Cluster
from tests.cluster.display import choose_display
from tests.cluster.engine import Engine
from tests.cluster.files import locked
from tests.cluster.plan import Plan, cluster_names, delete_cluster, node_containers
from tests.cluster.settings import DEFAULT_CLUSTER, Cache
from tests.cluster.steps import Display, Step, run_steps


def up(
    name: str = DEFAULT_CLUSTER,
    workers: int = 1,
    *,
    extra_steps: Sequence[Step] = (),
    display: Display | None = None,
) -> Cluster:
    """Bring a cluster up, or return the one that runs already.

    `extra_steps` run in the same graph and may name steps of `tests.cluster.plan` in `needs`.
    """
    plan = Plan(Cache.default(), name, workers)
    _run(plan, with_cluster=True, extra_steps=extra_steps, display=display)
    return plan.cluster


def build(*, extra_steps: Sequence[Step] = (), display: Display | None = None) -> None:
    """Build all that a cluster needs, without one."""
    plan = Plan(Cache.default(), DEFAULT_CLUSTER, 1)
    _run(plan, with_cluster=False, extra_steps=extra_steps, display=display)


def extend(steps: Sequence[Step], *, display: Display | None = None) -> None:
    """Run steps for a cluster that runs already: they may need one another, and no others."""
    cache = Cache.default()
    with _workplace(cache):
        run_steps(steps, logs=cache.logs, display=display or choose_display())


def down(
    name: str = DEFAULT_CLUSTER, *, everything: bool = False, stop_engine: bool = False
) -> list[str]:
    """Delete a cluster (or all of them) and, if asked, stop the engine if it is ours and free.

    Returns what was done, as lines for people.
    """
    cache = Cache.default()
    done = []
    with _exclusive(cache):
        for each in cluster_names(cache) if everything else [name]:
            existed = delete_cluster(cache, each)
            done.append(f"cluster {each}: {'deleted' if existed else 'there was none'}")
        if stop_engine:
            done.append(f"Docker engine: {_stop_engine(cache)}")
    return done


def _stop_engine(cache: Cache) -> str:
    """Stop the engine if it is ours and nobody else's cluster runs on it; says what was done."""
    others = [name for name in cluster_names(cache) if node_containers(name)]
    if others:
        return f"left running for cluster {', '.join(others)}"
    return "stopped" if Engine(cache).stop() else "not ours, left alone"


def _run(
    plan: Plan, *, with_cluster: bool, extra_steps: Sequence[Step], display: Display | None
) -> None:
    display = display or choose_display()
    cache = plan.cache
    with _workplace(cache):
        if not shutil.which("docker") or not engine.answers():
            # Whether an image registry answers decides on the rest, and Docker is what asks it.
            # A plan of its own: this one must not make up its mind before.
            run_steps(replace(plan).engine_steps(), logs=cache.logs, display=display)
        steps = plan.steps() if with_cluster else plan.build_steps()
        run_steps([*steps, *extra_steps], logs=cache.logs, display=display)


@contextmanager
def _workplace(cache: Cache) -> Iterator[None]:
    """The cache for us alone, with an empty scratch folder."""
    with _exclusive(cache):
        shutil.rmtree(cache.scratch, ignore_errors=True)
        cache.create()
        cache.scratch.mkdir()
        yield
        shutil.rmtree(cache.scratch, ignore_errors=True)


@contextmanager
def _exclusive(cache: Cache) -> Iterator[None]:
    def waiting() -> None:
        print("waiting for another run to end ...", file=sys.stderr, flush=True)

    with locked(cache.root / "lock", waiting):
        yield
