"""The operator under many InferenceServices, beside a bare client that writes the same children.

Both write to the same API server in one run, by turns. The bare client has no operator to run: it
sends every child and one status for each service, 64 at a time, and so is the floor. One and the
same watch, from before the first write on, tells when either is done.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote

import yaml

from assay_operator.cluster.client import KINDS as RESOURCES
from assay_operator.cluster.client import Client, load_configuration
from assay_operator.cluster.due import owned
from assay_operator.config import OperatorConfig
from assay_operator.inference.observation import Observation
from assay_operator.inference.planner import plan
from benchmarks.arrivals import SELECTOR, arrivals
from benchmarks.common import Json, Row, quantile, say, spread, versions, write
from tests.assay import SYSTEM, Assay
from tests.cluster.cluster import is_ready
from tests.kube import Kube, infsvc, wait_for

NAMESPACE = "bench-scale"
CONNECTIONS = 64
KINDS = ("ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy")
KINDS_LISTED = "infsvc,configmaps,services,deployments,poddisruptionbudgets,networkpolicies"
QUIET_SECONDS = 60
CALM_SECONDS = 15
PER_SECOND = 5


@dataclass
class Figures:
    """Everything that one run measured, in seconds, bytes or counts."""

    count: int
    children: int
    operator: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    first_child: list[float] = field(default_factory=list)
    all_children: list[float] = field(default_factory=list)
    quiet_writes: float = 0.0
    lease_writes: float = 0.0
    moved: list[str] = field(default_factory=list)
    calm_after: float = 0.0
    memory: list[float] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)


async def bounded(work: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Does everything, `CONNECTIONS` at a time."""
    slots = asyncio.Semaphore(CONNECTIONS)

    async def one(job: Callable[[], Awaitable[object]]) -> None:
        async with slots:
            await job()

    await asyncio.gather(*(one(job) for job in work))


def service(name: str) -> Json:
    item = infsvc(name, {"replicas": 0})
    item["metadata"]["namespace"] = NAMESPACE
    return item


async def create_services(client: Client, names: list[str]) -> None:
    await bounded(partial(client.create, service(name)) for name in names)


async def children(client: Client) -> list[Json]:
    found = await asyncio.gather(*(client.list(kind, NAMESPACE, SELECTOR) for kind in KINDS))
    return [item for items in found for item in items]


async def until(what: str, look: Callable[[], Awaitable[bool]], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not await look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        await asyncio.sleep(0.05)


async def timed(client: Client, count: int, each: int, work: Awaitable[object]) -> float:
    """Seconds from the begin of `work` until every service has its status and `each` children."""
    async with arrivals(client.configuration, NAMESPACE) as seen:

        async def done() -> bool:
            return seen.complete(count, each)

        began = time.monotonic()
        await asyncio.gather(work, until("all services done", done))
        return time.monotonic() - began


async def with_operator(client: Client, count: int) -> None:
    """Creates the services and leaves the rest to the operator."""
    await create_services(client, [f"s{number:03d}" for number in range(count)])


async def bare(client: Client, config: OperatorConfig, count: int) -> None:
    """Writes what the operator would write."""

    async def one(number: int) -> None:
        made = await client.create(service(f"s{number:03d}"))
        planned = plan(Observation(made), config, datetime.now(UTC))
        for item in planned.objects:
            await client.apply(owned(item, made))
        await client.apply(
            {
                **{key: made[key] for key in ("apiVersion", "kind")},
                "metadata": {"name": made["metadata"]["name"], "namespace": NAMESPACE},
                "status": planned.status,
            },
            sub="status",
        )

    await bounded(partial(one, number) for number in range(count))


async def empty(kube: Kube, client: Client) -> None:
    """Deletes all services with their children; the garbage collector alone would take minutes."""
    for kind in ("InferenceService", *KINDS):
        owned_by = "" if kind == "InferenceService" else f"?labelSelector={quote(SELECTOR)}"
        path = RESOURCES[kind].path(NAMESPACE) + owned_by
        await asyncio.to_thread(kube.kubectl, "delete", "--raw", path)

    async def gone() -> bool:
        services = await client.list("InferenceService", NAMESPACE)
        return not services and not await children(client)

    await until("all children gone", gone)


async def stream(client: Client, count: int, figures: Figures) -> None:
    """A new service every fifth of a second; how long its children take to arrive at a watch,
    from the moment before the service is sent."""
    began: dict[str, float] = {}

    async def create(name: str) -> None:
        began[name] = time.monotonic()
        await client.create(service(name))

    async with arrivals(client.configuration, NAMESPACE) as seen:

        async def done() -> bool:
            return seen.complete(count, figures.children)

        tasks = []
        for number in range(count):
            tasks.append(asyncio.create_task(create(f"t{number:03d}")))
            await asyncio.sleep(1 / PER_SECOND)
        await asyncio.gather(*tasks, until("all services done", done))
    for name, start in began.items():
        came = sorted(seen.children[name].values())
        figures.first_child.append(came[0] - start)
        figures.all_children.append(came[figures.children - 1] - start)


def scrape(kube: Kube) -> dict[str, str]:
    """The metrics of each operator pod, as text."""
    system = Kube(kube.cluster, SYSTEM)
    return {
        pod["metadata"]["name"]: system.kubectl(
            "get",
            "--raw",
            f"/api/v1/namespaces/{SYSTEM}/pods/{pod['metadata']['name']}:8080/proxy/metrics",
        )
        for pod in system.list("pods", "app.kubernetes.io/name=assay")
    }


def writes(text: str) -> tuple[float, float]:
    """API writes that a metrics page counts: of everything but the Lease, and of the Lease."""
    lease = other = 0.0
    for line in re.findall(r"^assay_api_writes_total\{.*$", text, re.M):
        value = float(line.rsplit(" ", 1)[1])
        if 'kind="Lease"' in line:
            lease += value
        else:
            other += value
    return other, lease


def process(text: str, figure: str) -> float:
    """A figure that a metrics page tells of its process, such as resident_memory_bytes."""
    return float(re.findall(rf"^process_{figure} (\S+)$", text, re.M)[0])


def cpu(kube: Kube) -> list[float]:
    """CPU seconds that each operator pod has used, the busiest first."""
    pages = scrape(kube).values()
    return sorted((process(text, "cpu_seconds_total") for text in pages), reverse=True)


def resident(pages: dict[str, str]) -> float:
    """Memory of the operator pod that holds most, in bytes, from the pods' metrics pages."""
    return max(process(text, "resident_memory_bytes") for text in pages.values())


def quiet(kube: Kube, figures: Figures) -> None:
    """One minute in which nothing happens: what is written all the same.

    The cluster's own controllers go on for a while with the statuses of new Deployments and
    PodDisruptionBudgets: the minute begins when nothing has moved for `CALM_SECONDS`.
    """
    began, then = time.monotonic(), object_versions(kube)
    time.sleep(CALM_SECONDS)
    while (now := object_versions(kube)) != then and time.monotonic() - began < 600:
        then = now
        time.sleep(CALM_SECONDS)
    figures.calm_after = time.monotonic() - began
    before, then = [writes(text) for text in scrape(kube).values()], object_versions(kube)
    time.sleep(QUIET_SECONDS)
    pages = scrape(kube)
    after = [writes(text) for text in pages.values()]
    figures.quiet_writes = sum(item[0] for item in after) - sum(item[0] for item in before)
    figures.lease_writes = sum(item[1] for item in after) - sum(item[1] for item in before)
    now = object_versions(kube)
    figures.moved = [name for name, value in now.items() if then.get(name) != value]
    figures.memory.append(resident(pages))


def installed_config(kube: Kube) -> OperatorConfig:
    """What the operator on the cluster is configured with, so that the floor writes the same."""
    path = r"jsonpath={.data.config\.yaml}"
    text = Kube(kube.cluster, SYSTEM).kubectl("get", "configmap", "assay-operator", "-o", path)
    return OperatorConfig.model_validate(yaml.safe_load(text))


def scale_operator(kube: Kube, replicas: int) -> None:
    system = Kube(kube.cluster, SYSTEM)
    system.kubectl("scale", "deployment/assay-operator", f"--replicas={replicas}")

    def there() -> bool:
        pods = system.list("pods", "app.kubernetes.io/name=assay")
        return len(pods) == sum(map(is_ready, pods)) == replicas

    wait_for(f"{replicas} operators", there, 180)


def object_versions(kube: Kube) -> dict[str, str]:
    """The version of each service and each child."""
    items = kube.list(KINDS_LISTED, "")
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in items
    }


async def measure(assay: Assay, kube: Kube, count: int, rounds: int) -> Figures:
    config = installed_config(kube)
    planned = plan(Observation(service("any")), config, datetime.now(UTC))
    figures = Figures(count, len(planned.objects))
    client = Client(await load_configuration(str(assay.cluster.kubeconfig), None))
    try:
        for turn in range(rounds):
            scale_operator(kube, 0)
            figures.floor.append(
                await timed(client, count, figures.children, bare(client, config, count))
            )
            await empty(kube, client)
            scale_operator(kube, 2)
            await asyncio.sleep(10)
            before = await asyncio.to_thread(cpu, kube)
            figures.operator.append(
                await timed(client, count, figures.children, with_operator(client, count))
            )
            figures.memory.append(resident(await asyncio.to_thread(scrape, kube)))
            after = await asyncio.to_thread(cpu, kube)
            figures.cpu.append([b - a for a, b in zip(before, after, strict=True)])
            say(
                f"round {turn + 1} of {rounds}: {count} services, bare client "
                f"{figures.floor[-1]:.1f} s, operator {figures.operator[-1]:.1f} s"
            )
            if turn < rounds - 1:
                await empty(kube, client)
        say(f"one quiet minute with {count} services")
        await asyncio.to_thread(quiet, kube, figures)
        await empty(kube, client)
        say(f"{PER_SECOND} services a second")
        await stream(client, count, figures)
        figures.memory.append(resident(await asyncio.to_thread(scrape, kube)))
        await empty(kube, client)
    finally:
        await client.close()
    return figures


def report(assay: Assay, figures: Figures) -> None:
    ratio = statistics.median(figures.operator) / statistics.median(figures.floor)
    p99 = quantile(figures.all_children, 0.99)
    memory = max(figures.memory) / 1e6
    ratios = [a / b for a, b in zip(figures.operator, figures.floor, strict=True)]
    rows = [
        Row(f"{figures.count} services at once, bare client", spread(figures.floor, "s")),
        Row(f"{figures.count} services at once, operator", spread(figures.operator, "s")),
        Row(
            "ratio of the medians (lowest and highest pair)",
            f"{ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})",
            "at most 1.3x",
            ratio <= 1.3,
        ),
        Row(
            f"{PER_SECOND} a second: spec to first child, p50 / p99",
            f"{quantile(figures.first_child, 0.5):.2f} s / "
            f"{quantile(figures.first_child, 0.99):.2f} s",
        ),
        Row(
            f"{PER_SECOND} a second: spec to last of {figures.children} children, p50 / p99",
            f"{quantile(figures.all_children, 0.5):.2f} s / {p99:.2f} s",
            "p99 below 1 s",
            p99 < 1,
        ),
        Row(
            "API writes in one quiet minute",
            f"{figures.quiet_writes:.0f} ({len(figures.moved)} objects moved)",
            "0",
            figures.quiet_writes == 0 and not figures.moved,
        ),
        Row(
            f"memory of an operator pod, {figures.count} services, largest of "
            f"{len(figures.memory)} readings",
            f"{memory:.0f} MB",
            "below 150 MB",
            memory < 150,
        ),
    ]
    notes = [
        f"Each service has {figures.children} children and no pod (`replicas: 0`).",
        "API server, etcd, controllers, both operator replicas and the client share the cores.",
        "The quiet minute began when nothing had moved for "
        f"{CALM_SECONDS} s, {figures.calm_after:.0f} s after the last service was done. The Lease "
        f"is renewed beside it: {figures.lease_writes:.0f} writes in that minute.",
        "CPU of the two replicas while they brought all services up: "
        + ", ".join(f"{a:.1f} and {b:.1f} s" for a, b in figures.cpu)
        + ".",
        "Times are those at which a watch of this process, on the same cores, brings an object.",
    ]
    about = versions(assay.cluster, assay.environment)
    write("scale", "Many InferenceServices", rows, notes=notes, about=about, raw=vars(figures))


def run(assay: Assay, count: int = 200, rounds: int = 3) -> None:
    """Measures and writes the table."""
    kubectl = assay.cluster.kubectl
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")
    kubectl("create", "namespace", NAMESPACE)
    kube = Kube(assay.cluster, NAMESPACE)
    try:
        figures = asyncio.run(measure(assay, kube, count, rounds))
        print(json.dumps({"floor": figures.floor, "operator": figures.operator}))
        report(assay, figures)
    finally:
        scale_operator(kube, 2)
        kubectl("delete", "namespace", NAMESPACE, "--timeout=300s")
