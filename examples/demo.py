"""`make demo`: from nothing to a chat with a model on a real Kubernetes.

python -m examples.demo up        bring everything up, serve the example, chat with it
python -m examples.demo cluster   only the cluster with Assay on it
python -m examples.demo down      remove it all
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from tests.assay import INSTALL, MODEL, Assay
from tests.cluster import Cluster, down, up
from tests.cluster.errors import ClusterError
from tests.cluster.settings import Cache
from tests.cluster.steps import Step, StepRun
from tests.kube import Kube

EXAMPLES = Path(__file__).parent
EXAMPLE = EXAMPLES / "inference-service.yaml"
SERVICE = "solver"
NAMESPACE = "default"
SERVE = "kubectl apply -f examples/inference-service.yaml"
PROMPT = "2 + 3 ="
READY_SECONDS = 300

console = Console()


def serve(cluster: Cluster, run: StepRun) -> None:
    """Applies the example and waits until a replica answers."""
    cluster.kubectl("-n", NAMESPACE, "apply", "-f", str(EXAMPLE))
    kube = Kube(cluster, NAMESPACE)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        ready = kube.condition(SERVICE)
        run.note(f"{ready.get('reason', 'waiting')}: {ready.get('message', '')}"[:70])
        if ready.get("status") == "True":
            return
        if time.monotonic() > deadline:
            told = cluster.kubectl("-n", NAMESPACE, "describe", "infsvc", SERVICE).stdout
            run.log(told)
            raise ClusterError(f"{SERVICE} is not ready after {READY_SECONDS} s")
        time.sleep(1)


def chat(cluster: Cluster, image: str) -> None:
    """One streamed answer, asked from a pod in the cluster, through DNS, Service and router."""
    console.print(f"\n[bold]You:[/] {PROMPT}\n[bold]{SERVICE}:[/] ", end="")
    url = f"http://{SERVICE}.{NAMESPACE}.svc/v1"
    script = (EXAMPLES / "chat.py").read_text()
    container = {
        "name": "chat",
        "image": image,
        "command": ["python3", "-u", "-c", script, url, SERVICE, PROMPT],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "chat"},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    words = ("-n", NAMESPACE, "delete", "pod", "chat", "--ignore-not-found")
    phase = ("-n", NAMESPACE, "get", "pod", "chat", "-o", "jsonpath={.status.phase}")
    cluster.kubectl(*words)
    cluster.kubectl("-n", NAMESPACE, "apply", "-f", "-", input=json.dumps(pod))
    try:
        # Only the log of a container that has started can be followed.
        while cluster.kubectl(*phase).stdout == "Pending":
            time.sleep(0.1)
        subprocess.run(
            [cluster.bin / "kubectl", "-n", NAMESPACE, "logs", "--follow", "pod/chat"],
            env={**os.environ, **cluster.environment},
            check=True,
        )
    finally:
        cluster.kubectl(*words, "--wait=false")


def next_steps(cluster: Cluster) -> None:
    broken = '{"spec":{"model":{"source":"pvc://models/nothing"}}}'
    console.rule("Everything is left running. Three things to try next")
    print(
        f"""
export KUBECONFIG={cluster.kubeconfig} PATH={cluster.bin}:$PATH

1. Scale it, and watch the new replica join only once it answers:
     kubectl scale infsvc/{SERVICE} --replicas=2; kubectl get infsvc -w
2. Talk to it from this machine:
     kubectl port-forward service/{SERVICE} 8000:80 &
     python3 examples/chat.py http://localhost:8000/v1 {SERVICE} "count to 5"
3. Break it, and read what to do about it; then mend it:
     kubectl patch infsvc/{SERVICE} --type=merge -p '{broken}'
     kubectl describe infsvc {SERVICE}
     kubectl apply -f examples/inference-service.yaml

make demo-down removes everything."""
    )


def bring_up(name: str, *, with_model: bool) -> Cluster:
    """The cluster with Assay on it and, if asked, the example served."""
    cache = Cache.default()
    cluster = Cluster.named(name, cache)
    assay = Assay(cluster, cache)
    steps = assay.steps()
    if with_model:
        steps += [
            assay.model_step(NAMESPACE),
            Step(SERVE, lambda run: serve(cluster, run), (INSTALL, MODEL), 60),
        ]
    up(name, extra_steps=steps)
    if with_model:
        console.print()
        print(cluster.kubectl("-n", NAMESPACE, "get", "infsvc", SERVICE).stdout, end="", flush=True)
        chat(cluster, assay.engine_image)
        next_steps(cluster)
    return cluster


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("up", "cluster", "down"))
    parser.add_argument("--name", default="assay", help="of the cluster (default assay)")
    options = parser.parse_args()
    try:
        if options.what == "down":
            print("\n".join(down(options.name, stop_engine=True)))
        else:
            bring_up(options.name, with_model=options.what == "up")
    except ClusterError as error:
        console.print(f"[red]{error}[/]", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("[yellow]stopped; run it again to go on where it was[/]")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
