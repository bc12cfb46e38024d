"""What the story of `make demo` is played on: a namespace, the commands in it, and what is seen.

Every command that is shown is one that a user can type in the checkout's folder, and what stands
below is what it printed.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import yaml

from assay_operator.inference.merge import strategic_merge
from assay_operator.plan import OWNER_LABEL
from examples import looks
from examples.looks import Json, Look
from examples.telling import Rows, Teller
from tests.assay import Assay
from tests.cluster.errors import ClusterError
from tests.cluster.settings import REPOSITORY
from tests.e2e.clients import CLIENT, Load, client_pod
from tests.e2e.nodes import folder_of
from tests.e2e.rollouts import checkpoint
from tests.kube import Kube, wait_for

SERVICE, JOB, SUITE = "solver", "solver-rl", "solver-heldout"
SPOILT, WORSE = "spoilt", "worse"
FOLDER = "examples/demo"
QUESTION = "sort 41 7 30 12 49 8"
COUNT_SECONDS = 10.0
"""How often the requests are counted: each time all of their record is read."""
GONE_SECONDS = 240


@dataclass(frozen=True)
class Score:
    """How the live service answered the held-out items.

    Attributes:
        mean: the score.
        interval: its lower and upper end.
        items: how many were judged.
    """

    mean: float
    interval: tuple[float, float]
    items: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:.3f} on {self.items} items ({low:.3f} to {high:.3f})"


def client(assay: Assay) -> Json:
    """The pod that users' requests come from; it can also score, and sees models and suite."""
    pod = strategic_merge(client_pod(assay.trainer_image), assay.pod_overrides(CLIENT))
    mounts = [
        {"name": "models", "mountPath": "/models"},
        {"name": "suite", "mountPath": "/suite", "readOnly": True},
    ]
    volumes = [
        {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
        {"name": "suite", "configMap": {"name": SUITE}},
    ]
    containers = [{"name": CLIENT, "volumeMounts": mounts}]
    return strategic_merge(pod, {"spec": {"containers": containers, "volumes": volumes}})


def brought(name: str, min_score: float, digest: str | None = None) -> Json:
    """A Checkpoint that somebody brings: a folder of the claim `models` with its name.

    Args:
        name: of Checkpoint and folder.
        min_score: from which it counts as verified.
        digest: that it claims to have.
    """
    service = yaml.safe_load((REPOSITORY / FOLDER / "service.yaml").read_text())
    claimed = {"digest": digest} if digest else {}
    engine = service["spec"]["engine"]
    return checkpoint(name, name, min_score, suite=SUITE, engine=engine, **claimed)


def clear(kube: Kube) -> None:
    """Removes what an earlier story left, so that this one begins at its beginning."""
    ours = (f"vrl/{JOB}", f"infsvc/{SERVICE}", f"ckpt/{SPOILT}", f"ckpt/{WORSE}", f"pod/{CLIENT}")
    kube.kubectl("delete", *ours, "--ignore-not-found", "--wait=false")
    selector = f"app.kubernetes.io/instance in ({SERVICE},verifiedrljob.{JOB},{SPOILT},{WORSE})"

    def gone() -> bool:
        left = kube.kubectl("get", *ours, "--ignore-not-found", "-o", "name").strip()
        made = kube.list("ckpt", f"{OWNER_LABEL}=verifiedrljob.{JOB}")
        return not (left or made or kube.list("pods", selector))

    wait_for("what an earlier demo left to go", gone, GONE_SECONDS, every=1)
    folder_of(kube, "models").run(f"rm -rf {JOB} {SPOILT} {WORSE}")


@dataclass
class Stage:
    """The namespace that the story is played in.

    Attributes:
        kube: the namespace.
        teller: prints it.
        seen: what was seen last.
    """

    kube: Kube
    teller: Teller
    seen: Look = field(default_factory=Look)

    def typed(self, *words: str, file: str = "") -> None:
        """Runs a command as a user would type it, and shows what it prints.

        Args:
            words: after `kubectl`.
            file: that it reads, as a path in the checkout.
        """
        self.teller.command(shlex.join(["kubectl", *words]) + (f" < {file}" if file else ""))
        content = (REPOSITORY / file).read_text() if file else None
        self.teller.output(self.kube.kubectl(*words, input=content))

    def apply(self, *objects: Json) -> None:
        """Applies objects as a user would who types them."""
        content = yaml.safe_dump_all(objects, sort_keys=False)
        self.teller.command(f"kubectl apply -f - <<YAML\n{content}YAML")
        self.teller.output(self.kube.kubectl("apply", "-f", "-", input=content))

    def pin(self, name: str) -> None:
        """Asks the service to serve one Checkpoint and nothing else."""
        patch = {"spec": {"model": {"source": f"checkpoint://{name}", "follow": None}}}
        self.typed("patch", "infsvc", SERVICE, "--type=merge", "-p", json.dumps(patch))

    def chat(self) -> None:
        """One answer, streamed, through Service and router."""
        url = f"http://{SERVICE}.{self.kube.namespace}.svc/v1"
        words = ("exec", "-i", CLIENT, "--", "python3", "-", url, SERVICE, QUESTION)
        self.typed(*words, file="examples/chat.py")

    def score(self, label: str) -> Score:
        """Asks the live service the held-out items, from the client's pod."""
        words = (
            *("exec", CLIENT, "--", "assay-verify", "gate", "--suite", "/suite/suite.jsonl"),
            *("--candidate", f"http://{SERVICE}", "--candidate-model", SERVICE),
            *("--min-score", "0", "--out", f"/tmp/{label}"),
        )
        self.teller.command(shlex.join(["kubectl", *words]))
        self.kube.kubectl(*words)
        report = json.loads(
            self.kube.kubectl("exec", CLIENT, "--", "cat", f"/tmp/{label}/report.json")
        )["score"]["candidate"]
        score = Score(report["mean"], tuple(report["interval"]), report["items"])
        self.teller.say(f"The live service scores {score}.")
        return score

    def follow(
        self,
        what: str,
        seconds: float,
        until: Callable[[Look], bool],
        load: Load | None = None,
        rows: Callable[[Look], Rows] = looks.progress,
    ) -> None:
        """Tells what happens until something holds.

        Args:
            what: for people.
            seconds: that it may take.
            until: whether it holds.
            load: whose requests are counted.
            rows: what is shown meanwhile.

        Raises:
            ClusterError: it did not come in time.
        """
        deadline, counted = time.monotonic() + seconds, 0.0
        with self.teller.progress() as shown:
            while True:
                if load and time.monotonic() - counted > COUNT_SECONDS:
                    load.wait_for_answers(0)
                    counted = time.monotonic()
                before, self.seen = self.seen, self._look(load)
                for line in looks.news(before, self.seen):
                    self.teller.say(line)
                if looks.is_turn(before, self.seen):
                    self.typed("get", "vrl,ckpt,infsvc")
                shown.show(rows(self.seen))
                if until(self.seen):
                    return
                if time.monotonic() > deadline:
                    told = "; ".join(f"{word}: {text}" for word, text in rows(self.seen))
                    job = self.kube.kubectl("describe", "vrl", JOB, check=False)
                    raise ClusterError(
                        f"waited {seconds:.0f} s for {what}. {told}",
                        f"{self.kube.describe(SERVICE)}\n{job}",
                    )
                time.sleep(1)

    def _look(self, load: Load | None) -> Look:
        found = json.loads(self.kube.kubectl("get", "vrl,ckpt,infsvc", "-o", "json"))
        answers, failed = (load.answers(), len(load.failures())) if load else (0, 0)
        return looks.look(found["items"], JOB, SERVICE, answers, failed)
