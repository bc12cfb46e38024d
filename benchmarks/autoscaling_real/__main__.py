"""The autoscaler on a real service beside the same in the simulator: one trace, one spec.

    python -m benchmarks.autoscaling_real
    python -m benchmarks.autoscaling_real --dry benchmarks/results/autoscaling_real.json

On a test cluster: a small model on CPU, what a replica of it can do and how long it takes to
start, then a piece of a trace in the Azure format, scaled down, against a service that scales
itself from 1 to 3 replicas. About 12 minutes, once the cluster is there. The simulator gets what
was measured before the trace began. --dry computes the table of a run anew, without a cluster.

Environment: ASSAY_CLUSTER (default assay-test) names the cluster; with KEEP=1 it is left running.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.autoscaling.trace import Trace
from benchmarks.autoscaling.trace import read as read_trace
from benchmarks.autoscaling_real import capacity, client, picture, table
from benchmarks.autoscaling_real.capacity import Loop, Measured, Rounds
from benchmarks.common import RESULTS, Json, machine, say, versions, write
from tests.assay import Assay, on_a_cluster
from tests.cluster import ClusterError
from tests.cluster.files import write_text
from tests.cluster.processes import Processes
from tests.cluster.settings import REPOSITORY, Cache
from tests.cluster.steps import StepRun
from tests.e2e.clients import CLIENT, Background, client_pod, run_in_pod
from tests.e2e.watching import Story, Told
from tests.kube import Kube, NotYet, infsvc, wait_for

TRACE = REPOSITORY.parent / "shared" / "data" / "azure_llm_inference_2023_code.csv"
NAME = "autoscaling_real"
NAMESPACE, SERVICE = "bench-autoscaling", "scaled"
FROM_S, SECONDS, TAIL_S = 210.0, 350.0, 60.0
SEED = 1
LEAD_S = 30.0
"""From the first decision until the trace begins."""
CPU = "400m"
TTFT_MS, LEAST, MOST = 1500, 1, 3
DOWN_AFTER = "30s"
ROUNDS: dict[int, int] = {1: 9, 2: 7, 4: 7}
"""By the number of requests at once; the first round is not counted."""
PROMPT, LONG_PROMPT, OUTPUT, SHORT_OUTPUT = 64, 320, 48, 8
LOOP_CLIENTS, LOOP_REQUESTS = 8, 96
START_SECONDS, PATIENCE = 400.0, 120.0
_SCRIPT = Path(client.__file__).read_text()


@dataclass(frozen=True)
class Asked:
    """What is replayed.

    Attributes:
        trace: in the Azure format.
        begin: second of the trace.
        seconds: of it.
    """

    trace: Path
    begin: float
    seconds: float

    def piece(self) -> Trace:
        """All of its requests, scaled down in length."""
        return capacity.shortened(read_trace(self.trace), self.begin, self.seconds)

    @property
    def source(self) -> str:
        """In words."""
        return f"{self.trace.name}, second {self.begin:g} to {self.begin + self.seconds:g}"


class Replay(Background):
    """The trace's requests from the client pod for the time of a `with` block."""

    def __init__(self, kube: Kube, begin: float, piece: Trace) -> None:
        requests = client.written([(one.at, one.prompt, one.output) for one in piece])
        words = (_url(kube), SERVICE, PATIENCE, "replay", begin, requests)
        super().__init__(kube, "replay", _SCRIPT, *words)
        self._number = len(piece)

    def wait_over(self, seconds: float) -> None:
        """Until each request is over. One that is not in time is missing in `lines`."""

        def over() -> bool:
            self._read()
            return len(self.lines) >= self._number

        try:
            wait_for("the end of all requests", over, seconds, every=2)
        except NotYet as late:
            say(str(late))


def _url(kube: Kube) -> str:
    return f"http://{SERVICE}.{kube.namespace}.svc/v1"


def service(autoscaling: Json | None = None) -> Json:
    """The InferenceService; without autoscaling it has one replica."""
    return infsvc(
        SERVICE,
        {
            "replicas": 1,
            "router": {"policy": "round_robin"},
            "engine": {
                "extraArgs": [
                    *("--context-length", "2048"),
                    *("--max-total-tokens", str(capacity.KV_TOKENS)),
                    *("--chunked-prefill-size", str(capacity.CHUNK)),
                    *("--max-running-requests", str(capacity.SLOTS)),
                ],
                "resources": {
                    "requests": {"cpu": "50m", "memory": "128Mi"},
                    "limits": {"cpu": CPU},
                },
            },
            **({"autoscaling": autoscaling} if autoscaling else {}),
        },
    )


def asked(kube: Kube, mode: str, clients: int, lengths: Sequence[tuple[int, int]]) -> list[Json]:
    """What the client notes of requests of these lengths, in their order.

    Raises:
        ClusterError: one of them failed.
    """
    requests = client.written([(0.0, prompt, output) for prompt, output in lengths])
    words = ("-", _url(kube), SERVICE, str(PATIENCE), mode, str(clients), requests)
    lines = [json.loads(line) for line in run_in_pod(kube, _SCRIPT, *words).splitlines()]
    if failed := [line["error"] for line in lines if line["error"]]:
        raise ClusterError(f"{len(failed)} of {len(lines)} requests failed: {failed[0]}")
    return sorted(lines, key=lambda line: int(line["number"]))


def rounds(kube: Kube, clients: int, prompt: int, output: int, number: int) -> Rounds:
    """So many rounds but the first."""
    lines = asked(kube, "rounds", clients, [(prompt, output)] * clients * number)
    found = Rounds(clients, prompt, output, lines[clients:])
    say(f"{clients} at once: TTFT {found.ttft_s * 1e3:.0f} ms, ITL {found.itl_s * 1e3:.1f} ms")
    return found


def measure(kube: Kube, piece: Trace) -> Measured:
    """What a replica can do, and how long one takes to start beside another."""
    alike = [rounds(kube, clients, PROMPT, OUTPUT, ROUNDS[clients]) for clients in ROUNDS]
    long = rounds(kube, 1, LONG_PROMPT, SHORT_OUTPUT, ROUNDS[1])
    step = max(1, len(piece) // LOOP_REQUESTS)
    lengths = [(one.prompt, one.output) for one in piece[::step]][:LOOP_REQUESTS]
    loop = Loop(LOOP_CLIENTS, lengths, asked(kube, "loop", LOOP_CLIENTS, lengths))
    say(f"{LOOP_CLIENTS} clients without a pause: {loop.requests_s:.2f} requests/s")
    began = time.monotonic()
    scale(kube, 2)
    start_s = time.monotonic() - began
    say(f"a second replica was routable after {start_s:.0f} s")
    scale(kube, 1)
    return Measured(alike, long, loop, start_s)


def scale(kube: Kube, replicas: int) -> None:
    """Another number of replicas, all of them routable and no other there."""
    kube.kubectl("scale", f"infsvc/{SERVICE}", f"--replicas={replicas}")
    kube.wait_ready(SERVICE, START_SECONDS, replicas=replicas)
    engines = f"app.kubernetes.io/instance={SERVICE},app.kubernetes.io/component=engine"
    wait_for(f"{replicas} pods", lambda: len(kube.list("pods", engines)) == replicas, 240, 1)


def follow(kube: Kube, piece: Trace, autoscaling: Json, end_s: float) -> Json:
    """The trace against the service that scales itself: all that was told and felt, as JSON.

    Args:
        kube: where the service is.
        piece: the requests.
        autoscaling: of the spec.
        end_s: when the record ends, in seconds since the trace began.
    """
    kube.apply(service(autoscaling))
    watched = time.time()
    with Story(kube, SERVICE) as story:
        story.wait(lambda told: _scaling(told).get("time") is not None, 0, 120)
        begin, loads = time.time() + LEAD_S, []
        with Replay(kube, begin, piece) as replay:
            while (now := time.time()) < begin + end_s:
                if now >= begin:
                    loads.append(round(os.getloadavg()[0], 2))
                time.sleep(1)
            told = list(story.told)
            say(f"{end_s:.0f} s are over; what is still under way")
            replay.wait_over(PATIENCE + 30)
        lines = replay.lines
    return {
        "begin": begin,
        "lead_s": begin - watched,
        "end_s": end_s,
        "told": changes(told, begin),
        "learned": _scaling(told[-1]).get("capacity") or {},
        "loads": loads,
        "lines": lines,
    }


def _scaling(told: Told) -> Json:
    found: Json = told.status.get("autoscaling") or {}
    return found


def changes(told: Sequence[Told], begin: float) -> list[Json]:
    """The statuses in which a number of replicas changes, and the first one."""
    found: list[Json] = []
    for each in told:
        scaling = _scaling(each)
        line = {
            "wanted": scaling.get("replicas"),
            "ready": each.status.get("readyReplicas"),
            "reason": scaling.get("reason"),
        }
        numbers = [line["wanted"], line["ready"]]
        if not found or numbers != [found[-1]["wanted"], found[-1]["ready"]]:
            found.append({"at": each.at - begin, **line})
    return found


def record(assay: Assay, kube: Kube, wanted: Asked) -> Json:
    """Measures, replays, and returns all that the table is made from."""
    piece = wanted.piece()
    measured = measure(kube, piece)
    found = capacity.capacity(measured)
    objectives = {"ttftMs": TTFT_MS, "itlMs": capacity.itl_objective_ms(found)}
    goal = table.objective(objectives["ttftMs"], objectives["itlMs"])
    share = capacity.share_kept(found, piece, goal)
    kept = capacity.thinned(piece, share, SEED)
    scaling = {
        "min": LEAST,
        "max": MOST,
        "objectives": objectives,
        "scaleDownAfter": DOWN_AFTER,
    }
    say(f"{len(kept)} of {len(piece)} requests, {goal.name}: {wanted.seconds + TAIL_S:.0f} s")
    run = follow(kube, kept, scaling, wanted.seconds + TAIL_S)
    return {
        "about": f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {machine()}",
        "versions": versions(assay.cluster, assay.environment),
        "source": wanted.source,
        "share": share,
        "spec": service(scaling)["spec"],
        "measured": asdict(measured),
        "requests": [[one.at, one.prompt, one.output] for one in kept],
        "run": run,
    }


def tell(found: Json) -> None:
    """Simulates the same as a record and writes the table, the picture and the record."""
    result = table.simulate(table.read(found))
    picture.draw(result, RESULTS / f"{NAME}.png")
    write(
        NAME,
        "The autoscaler on a real service, and the same simulated",
        table.rows(result),
        notes=table.notes(result, NAME),
        about=found["versions"],
        raw={**found, "computed": table.raw(result)},
        command=f"python -m benchmarks.{NAME}",
    )


def run(assay: Assay, wanted: Asked) -> None:
    """Measures and writes the table."""
    kubectl = assay.cluster.kubectl
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")
    kubectl("create", "namespace", NAMESPACE)
    kube, log = Kube(assay.cluster, NAMESPACE), Cache.default().logs / "bench-model.log"
    try:
        say("a small model, and a service of one replica")
        assay.make_model(NAMESPACE, StepRun("model", log, Processes()))
        kube.apply(client_pod(assay.engine_image), service())
        kube.wait_ready(SERVICE, START_SECONDS, replicas=1)
        kube.kubectl("wait", f"pod/{CLIENT}", "--for=condition=Ready", "--timeout=120s")
        found = record(assay, kube, wanted)
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--timeout=300s", check=False)
    # Whatever becomes of the table, the run shall not have been for nothing.
    write_text(RESULTS / f"{NAME}.json", json.dumps(found) + "\n")
    tell(found)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trace", type=Path, default=TRACE, help="in the format of Azure's")
    parser.add_argument("--begin", type=float, default=FROM_S, help="second of the trace")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the trace")
    parser.add_argument("--dry", type=Path, metavar="FILE", help="what an earlier run wrote")
    options = parser.parse_args()
    wanted = Asked(options.trace, options.begin, options.seconds)
    try:
        if options.dry:
            tell(json.loads(options.dry.read_text()))
            return 0
        wanted.piece()  # A trace that cannot be read is told before a cluster is made.
        with on_a_cluster() as assay:
            run(assay, wanted)
    except (ClusterError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
