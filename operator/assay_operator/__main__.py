"""The command line: run the operator, write its CRDs, or show offline what it would do."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml
from pydantic import ValidationError

from assay_operator import config as configuration
from assay_operator.api import reference, schema


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 done, 1 not as asked, 2 not understood."""
    options = _parser().parse_args(arguments)
    code: int = options.command(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="assay-operator", description="Serves and trains language models on Kubernetes."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _run_options(commands.add_parser("run", help="run the operator, in a pod or from a shell"))
    crds = commands.add_parser("crds", help="print, write or check the CRDs")
    where = crds.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", help="write one file a CRD into DIR")
    where.add_argument("--check", type=Path, metavar="DIR", help="fail if DIR is out of date")
    crds.set_defaults(command=_crds)
    page = commands.add_parser("reference", help="print the API reference as Markdown")
    page.set_defaults(command=_reference)
    plan = commands.add_parser(
        "plan",
        help="print what would be applied, without a cluster",
        description="Prints what would be applied for the custom resources in the files, which see "
        "each other. A Checkpoint that would be weighed first is taken for one that passed.",
    )
    plan.add_argument("files", nargs="+", metavar="FILE", help="YAML; - reads standard input")
    plan.add_argument("--config", type=Path, metavar="FILE", help="the operator's configuration")
    plan.set_defaults(command=_plan)
    why = commands.add_parser("explain", help="draw the last hour of a service that scales itself")
    why.add_argument("name", metavar="NAME", help="of the InferenceService")
    why.add_argument("--namespace", "-n", metavar="NS", help="default: that of the kubeconfig")
    _access_options(why)
    why.set_defaults(command=_explain)
    told = commands.add_parser("version", help="print the version")
    told.set_defaults(command=_version)
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    _access_options(parser)
    add = parser.add_argument
    add(
        "--namespace",
        action="append",
        default=[],
        metavar="NS",
        help="work in this namespace only; may be given several times (default: all)",
    )
    add("--config", type=Path, metavar="FILE", help="defaults that the administrator sets")
    add(
        "--reach",
        choices=("auto", "pods", "apiserver"),
        default="auto",
        help="ask engines and routers at their pods' addresses or through the API server "
        "(default: pods in a cluster, else apiserver)",
    )
    add("--port", type=int, default=8080, help="of /healthz, /readyz and /metrics; 0: any free one")
    add(
        "--metrics-api",
        type=Path,
        metavar="DIR",
        help="serve external.metrics.k8s.io for autoscaling by driver hpa, with tls.crt and "
        "tls.key of DIR",
    )
    add("--metrics-api-port", type=int, default=6443, help="of that API")
    add("--lease-namespace", metavar="NS", help="default: the operator's own namespace")
    add("--lease-name", default="assay-operator", metavar="NAME", help="of the leader's Lease")
    add("--no-leader-election", action="store_true", help="for a single process")
    add("--log-format", choices=("json", "text"), default="json", help="default: json")
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    parser.set_defaults(command=_run)


def _access_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--kubeconfig", help="default: the pod's service account, else the current kubeconfig")
    add("--context", help="context of the kubeconfig")


def _run(options: argparse.Namespace) -> int:
    # Only this command needs kopf and a client: the others start in a fraction of the time.
    from kubernetes.aio.config import ConfigException  # noqa: PLC0415

    from assay_operator import runtime, telemetry  # noqa: PLC0415

    telemetry.configure_logging(options.log_format, options.log_level)
    try:
        return asyncio.run(
            runtime.run(
                runtime.Options(
                    kubeconfig=options.kubeconfig,
                    context=options.context,
                    namespaces=tuple(options.namespace),
                    reach=options.reach,
                    port=options.port,
                    metrics_api=options.metrics_api,
                    metrics_api_port=options.metrics_api_port,
                    lease_namespace=options.lease_namespace,
                    lease_name=options.lease_name,
                    election=not options.no_leader_election,
                ),
                configuration.load(options.config),
            )
        )
    except (ConfigException, ValidationError, ValueError, OSError) as error:
        return _complain(error)


def _crds(options: argparse.Namespace) -> int:
    if options.check:
        wrong = [
            path
            for path, content in schema.files(options.check).items()
            if not path.exists() or path.read_text() != content
        ]
        for path in wrong:
            _complain(f"{path} is out of date: run `assay-operator crds --out {options.check}`")
        return 1 if wrong else 0
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for path, content in schema.files(options.out).items():
            path.write_text(content)
        return 0
    print("---\n".join(schema.files(Path()).values()), end="")
    return 0


def _reference(_options: argparse.Namespace) -> int:
    print(reference.render(), end="")
    return 0


def _plan(options: argparse.Namespace) -> int:
    # The planners take longer to load than the other commands run.
    from assay_operator import offline  # noqa: PLC0415

    try:
        settings = configuration.load(options.config)
        found = [each for name in options.files for each in offline.resources(name, _read(name))]
        objects = list(offline.objects(found, settings, datetime.now(UTC)))
    except (ValueError, OSError, yaml.YAMLError) as error:
        return _complain(error)
    if not found:
        kinds = " or ".join(offline.SPECS)
        return _complain(f"there is no {kinds} in {', '.join(options.files)}")
    if objects:
        yaml.safe_dump_all(objects, sys.stdout, sort_keys=False, explicit_start=True)
    return 0


def _read(name: str) -> str:
    return sys.stdin.read() if name == "-" else Path(name).read_text()


def _explain(options: argparse.Namespace) -> int:
    from kubernetes.aio.config import ConfigException  # noqa: PLC0415

    from assay_operator.cluster.client import ApiError, look_up  # noqa: PLC0415
    from assay_operator.explain import explain  # noqa: PLC0415

    try:
        service = asyncio.run(
            look_up(
                "InferenceService",
                options.name,
                namespace=options.namespace,
                kubeconfig=options.kubeconfig,
                context=options.context,
            )
        )
        print(explain(service, datetime.now(UTC)))
    except (ApiError, ConfigException, ValueError) as error:
        return _complain(error)
    return 0


def _version(_: argparse.Namespace) -> int:
    print(f"assay-operator {version('assay')}")
    return 0


def _complain(error: object) -> int:
    print(f"assay-operator: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
