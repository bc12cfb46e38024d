"""`make demo`: a model that trains, is weighed and served, on a real Kubernetes.

python -m examples.demo up        bring everything up, then tell the story: examples/story.py
python -m examples.demo cluster   only the cluster with Assay on it
python -m examples.demo down      remove it all

It can be stopped anywhere and run again: what is up is used, and the story begins anew.
"""

from __future__ import annotations

import argparse
import os
import sys

from rich.console import Console

from examples.stage import QUESTION, SERVICE, Stage, clear
from examples.story import TASK, Story, remove_pictures
from examples.telling import Teller
from tests.assay import ENVIRONMENT, INSTALL, LOAD, SYSTEM, Assay
from tests.cluster import Cluster, down, up
from tests.cluster.errors import ClusterError
from tests.cluster.settings import REPOSITORY, Cache
from tests.cluster.steps import Step
from tests.e2e.clients import CLIENT
from tests.kube import Kube, NotYet

NAMESPACE = "default"
MAKE, CLEAR = "a base model and its items, on a volume", "what an earlier demo left"
# It shall be poor enough to be worth training, and good enough to learn in minutes: most of what it
# was taught is sorted the wrong way, and it stopped early.
BASE_MODEL = ("--downwards", "0.6", "--start", "0.2")

console = Console()


def story_steps(assay: Assay, kube: Kube) -> list[Step]:
    """What the story needs beside Assay itself."""
    return [
        Step(
            MAKE,
            lambda run: assay.make_task(kube.namespace, run, TASK, BASE_MODEL),
            (LOAD, ENVIRONMENT),
            90,
        ),
        Step(CLEAR, lambda _: clear(kube), (INSTALL, MAKE), 5),
    ]


def next_steps(cluster: Cluster) -> None:
    console.rule("Everything is left running. Three things to try next")
    print(
        f"""
export KUBECONFIG={cluster.kubeconfig} PATH={cluster.bin}:$PATH

1. Take back the weights that were served before, and watch them come; then follow again:
     kubectl annotate infsvc {SERVICE} assay.dev/rollback=previous; kubectl get infsvc -w
     kubectl annotate infsvc {SERVICE} assay.dev/rollback-
2. Talk to it from this machine:
     kubectl port-forward service/{SERVICE} 8000:80 &
     python3 examples/chat.py http://localhost:8000/v1 {SERVICE} "{QUESTION}"
3. Delete the operator, and ask again: models go on being served, and it goes on where it was.
     kubectl -n {SYSTEM} delete pods --all --wait=false
     kubectl exec {CLIENT} -- python3 -c "$(cat examples/chat.py)" \\
       http://{SERVICE}/v1 {SERVICE} "{QUESTION}"

make demo-down removes everything."""
    )


def bring_up(name: str, *, with_story: bool) -> None:
    """The cluster with Assay on it and, if asked, the story told on it.

    Raises:
        ClusterError: something did not come up, or did not come to what it should.
        NotYet: likewise.
    """
    cache = Cache.default()
    cluster = Cluster.named(name, cache)
    assay, kube = Assay(cluster, cache), Kube(cluster, NAMESPACE)
    up(name, extra_steps=[*assay.steps(), *(story_steps(assay, kube) if with_story else [])])
    if with_story:
        Story(assay, Stage(kube, Teller(console))).tell()
        next_steps(cluster)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("up", "cluster", "down"))
    parser.add_argument("--name", default="assay", help="of the cluster (default assay)")
    options = parser.parse_args()
    # The story's commands name files as they are called from here.
    os.chdir(REPOSITORY)
    try:
        if options.what == "down":
            print("\n".join(down(options.name, stop_engine=True)))
            if removed := remove_pictures():
                print(f"removed {removed}")
        else:
            bring_up(options.name, with_story=options.what == "up")
    except (ClusterError, NotYet) as error:
        console.print(f"[red]{error}[/]", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("[yellow]stopped; run it again, and the story begins anew[/]")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
