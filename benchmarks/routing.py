"""What Service and router cost: SGLang's own bench client through them and at the bare engine.

Both ways by turns against one engine, with the same prompts; the engine's prefix cache is emptied
before each run, so that no run profits from the one before.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass

from benchmarks.common import Json, Row, say, spread, versions, write
from tests.assay import ENGINE_MOUNT, Assay, models_claim
from tests.cluster.processes import Processes
from tests.cluster.settings import Cache
from tests.cluster.steps import StepRun
from tests.kube import Kube, infsvc

NAMESPACE = "bench-routing"
SERVICE = "routed"
POD = "bench"
CONCURRENCY = 32
PROMPTS = 320
LENGTH = 64
GOAL = 0.95
OUT = "/tmp/bench.jsonl"
STUBS = "/tmp/stubs"
# The bench client imports Hugging Face's datasets for sources that are not used here; the engine's
# environment has no such package.
_STUB = """
from pathlib import Path
Path("/tmp/stubs").mkdir(exist_ok=True)
Path("/tmp/stubs/datasets.py").write_text("load_dataset = None\\n")
"""


@dataclass(frozen=True)
class Target:
    """One way to the engine."""

    name: str
    url: str


def bench_pod(assay: Assay) -> Json:
    """A pod with SGLang's client and the model's tokenizer, on the engine's node."""
    overrides = assay.pod_overrides(POD)["spec"]
    mounts = overrides["containers"][0]["volumeMounts"]
    container = {
        "name": POD,
        "image": assay.engine_image,
        "command": ["python3", "-c", "import time; time.sleep(1e6)"],
        "env": [
            {"name": "SGLANG_USE_CPU_ENGINE", "value": "1"},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "OMP_NUM_THREADS", "value": "1"},
            {"name": "PYTHONPATH", "value": f"{STUBS}:{ENGINE_MOUNT}"},
        ],
        "volumeMounts": [*mounts, {"name": "models", "mountPath": "/models", "readOnly": True}],
    }
    claim = models_claim()["metadata"]["name"]
    volumes = [
        *overrides["volumes"],
        {"name": "models", "persistentVolumeClaim": {"claimName": claim}},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": volumes,
        },
    }


def one_run(kube: Kube, target: Target, engine: str, seed: int, prompts: int) -> Json:
    """One run of the bench client; its own figures."""
    flush = (
        "import urllib.request as r;"
        f"r.urlopen(r.Request('{engine}/flush_cache', method='POST'), timeout=30).read()"
    )
    kube.kubectl("exec", POD, "--", "python3", "-c", flush)
    kube.kubectl("exec", POD, "--", "rm", "-f", OUT)
    kube.kubectl(
        *("exec", POD, "--", "python3", "-m", "sglang.benchmark.serving"),
        *("--backend", "sglang-oai-chat", "--base-url", target.url, "--model", SERVICE),
        *("--tokenizer", "/models/tiny", "--dataset-name", "random-ids"),
        *("--random-input-len", str(LENGTH), "--random-output-len", str(LENGTH)),
        *("--random-range-ratio", "1.0", "--num-prompts", str(prompts)),
        *("--max-concurrency", str(CONCURRENCY), "--seed", str(seed)),
        *("--warmup-requests", "8", "--disable-tqdm", "--output-file", OUT),
    )
    lines = kube.kubectl("exec", POD, "--", "cat", OUT).splitlines()
    figures: Json = json.loads(lines[-1])
    assert figures["completed"] == prompts, f"{figures['completed']} of {prompts} answered"
    return figures


def measure(kube: Kube, rounds: int, prompts: int) -> dict[str, list[Json]]:
    """Runs by turns: engine, router, engine, ..."""
    kube.kubectl("exec", POD, "--", "python3", "-c", _STUB)
    pods = kube.list("pods", "app.kubernetes.io/component=engine")
    engine = f"http://{pods[0]['status']['podIP']}:30000"
    routed = f"http://{SERVICE}.{kube.namespace}.svc"
    targets = (Target("engine", engine), Target("router", routed))
    figures: dict[str, list[Json]] = {target.name: [] for target in targets}
    for target in targets:
        one_run(kube, target, engine, seed=0, prompts=CONCURRENCY)
    for turn in range(1, rounds + 1):
        for target in targets:
            figures[target.name].append(one_run(kube, target, engine, turn, prompts))
        tokens = [figures[target.name][-1]["output_throughput"] for target in targets]
        say(f"round {turn} of {rounds}: engine {tokens[0]:.0f}, router {tokens[1]:.0f} tokens/s")
    return figures


def report(assay: Assay, figures: dict[str, list[Json]], prompts: int) -> None:
    tokens = {name: [run["output_throughput"] for run in runs] for name, runs in figures.items()}
    pairs = [b / a for a, b in zip(tokens["engine"], tokens["router"], strict=True)]
    ratio = statistics.median(pairs)

    def median(name: str, key: str) -> str:
        return f"{statistics.median(run[key] for run in figures[name]):.0f} ms"

    rows = [
        Row("output tokens/s, bare engine", spread(tokens["engine"], "tokens/s", 0)),
        Row("output tokens/s, Service and router", spread(tokens["router"], "tokens/s", 0)),
        Row(
            "router / engine, median of the pairs",
            f"{100 * ratio:.1f}% ({100 * min(pairs):.1f} to {100 * max(pairs):.1f})",
            f"at least {100 * GOAL:.0f}%",
            ratio >= GOAL,
        ),
        *(
            Row(
                f"{label}, engine / router",
                f"{median('engine', key)} / {median('router', key)}",
            )
            for label, key in (
                ("time to first token, median", "median_ttft_ms"),
                ("time to first token, p99", "p99_ttft_ms"),
                ("inter-token latency, median", "median_itl_ms"),
            )
        ),
    ]
    notes = [
        f"{prompts} prompts of {LENGTH} random tokens, {LENGTH} tokens out, concurrency "
        f"{CONCURRENCY}, `python -m sglang.benchmark.serving --backend sglang-oai-chat`.",
        "A model of 2.8 M parameters on CPU; client, router and engine share the cores, so the "
        "router's own CPU time is taken from the engine's. On a GPU it would not be.",
    ]
    about = versions(assay.cluster, assay.environment)
    write(
        "routing",
        "Service and router beside the bare engine",
        rows,
        notes=notes,
        about=about,
        raw=figures,
    )


def run(assay: Assay, rounds: int = 5, prompts: int = PROMPTS) -> None:
    """Measures and writes the table."""
    kubectl = assay.cluster.kubectl
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")
    kubectl("create", "namespace", NAMESPACE)
    kube = Kube(assay.cluster, NAMESPACE)
    log = Cache.default().logs / "bench-model.log"
    try:
        say("a small model")
        assay.make_model(NAMESPACE, StepRun("model", log, Processes()))
        kube.apply(infsvc(SERVICE, {}), bench_pod(assay))
        kube.wait_ready(SERVICE)
        kube.kubectl("wait", f"pod/{POD}", "--for=condition=Ready", "--timeout=120s")
        report(assay, measure(kube, rounds, prompts), prompts)
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--timeout=300s")
