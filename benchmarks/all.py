"""Runs the benchmarks on a test cluster and writes their tables under benchmarks/results.

    python -m benchmarks.all                 all of them
    python -m benchmarks.all routing scale   some

Environment: ASSAY_CLUSTER (default assay-test) names the cluster; with KEEP=1 it is left running.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from benchmarks import failover, operator_scale, rollout, routing
from benchmarks.common import say
from tests.assay import Assay, on_a_cluster
from tests.cluster import ClusterError

BENCHMARKS: dict[str, Callable[[Assay], None]] = {
    "routing": routing.run,
    "scale": operator_scale.run,
    "failover": failover.run,
    "rollout": rollout.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    try:
        with on_a_cluster() as assay:
            for number, each in enumerate(names, 1):
                say(f"benchmark {number} of {len(names)}: {each}")
                BENCHMARKS[each](assay)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
