"""The command line: `python -m tests.cluster COMMAND`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable

from tests.cluster import lifecycle
from tests.cluster.cluster import Cluster
from tests.cluster.errors import ClusterError
from tests.cluster.keda import Keda
from tests.cluster.settings import DEFAULT_CLUSTER, Cache
from tests.cluster.status import print_status


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, act: Callable[[argparse.Namespace], None], text: str) -> _Command:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(act=act)
        return command

    def add_name(command: _Command) -> None:
        command.add_argument("--name", default=DEFAULT_CLUSTER, help="cluster (%(default)s)")

    command = add("up", _up, "Start a cluster, or use the one that runs if it is healthy.")
    add_name(command)
    command.add_argument(
        "--workers", type=_count, default=1, help="nodes beside the control plane (%(default)s)"
    )
    command = add("down", _down, "Delete a cluster with everything that belongs to it.")
    add_name(command)
    command.add_argument("--all", action="store_true", help="all clusters of this cache")
    command.add_argument("--engine", action="store_true", help="stop the Docker engine, if ours")
    add_name(add("status", _status, "Show the engine, the nodes and the pods that are not well."))
    command = add("load", _load, "Put images of the Docker engine on all nodes.")
    add_name(command)
    command.add_argument("images", nargs="+", metavar="IMAGE[:TAG]")
    command = add("gpus", _gpus, "Pretend that a node has GPUs, for tests of scheduling.")
    add_name(command)
    command.add_argument("count", type=_count, metavar="COUNT", help="0 takes them away")
    command.add_argument("--node", help="the node (the first worker)")
    command = add("keda", _keda, "Put KEDA on a running cluster; the first time it is compiled.")
    add_name(command)
    command.add_argument("--remove", action="store_true", help="take it off again")
    add_name(add("env", _env, "Print exports to eval: KUBECONFIG, and PATH with the tools."))
    add("build", _build, "Build all that a cluster needs, without starting one.")
    return top


_Command = argparse.ArgumentParser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _up(options: argparse.Namespace) -> None:
    cluster = lifecycle.up(options.name, options.workers)
    named = "" if options.name == DEFAULT_CLUSTER else f" --name {options.name}"
    print(f"Cluster {cluster.name} is ready. To use it from this shell:")
    print(f'  eval "$(python -m tests.cluster env{named})"')


def _down(options: argparse.Namespace) -> None:
    done = lifecycle.down(options.name, everything=options.all, stop_engine=options.engine)
    print("\n".join(done))


def _status(options: argparse.Namespace) -> None:
    if not print_status(options.name):
        raise SystemExit(1)


def _load(options: argparse.Namespace) -> None:
    Cluster.named(options.name).load(*options.images)


def _gpus(options: argparse.Namespace) -> None:
    node = Cluster.named(options.name).pretend_gpus(options.count, options.node)
    print(f"{node}: {options.count} pretended GPUs")


def _keda(options: argparse.Namespace) -> None:
    cluster = Cluster.named(options.name)
    if problem := cluster.problem():
        raise ClusterError(f"cluster {cluster.name}: {problem}.", "Bring it up first.")
    keda = Keda.on(cluster, Cache.default())
    if options.remove:
        keda.remove()
    else:
        keda.install()


def _env(options: argparse.Namespace) -> None:
    cluster = Cluster.named(options.name)
    if not cluster.kubeconfig.exists():
        raise ClusterError(
            f"there is no cluster named {options.name}.", "Run `python -m tests.cluster up` first."
        )
    print(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
    print(f'export PATH={shlex.quote(str(cluster.bin))}:"$PATH"')


def _build(_: argparse.Namespace) -> None:
    lifecycle.build()


def main() -> int:
    # As Ctrl-C, so that what was started is ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = parser().parse_args()
    try:
        options.act(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
