"""The story that `make demo` tells on a running cluster: trained, weighed, served, turned away.

What is trained and served says the folder examples/demo.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from assay_operator.conditions import by_type
from assay_operator.inference.rollout_state import OVER
from assay_trainer import metrics
from examples import looks, picture
from examples.looks import Json, Look
from examples.stage import FOLDER, JOB, SERVICE, SPOILT, WORSE, Score, Stage, brought, client
from examples.telling import Rows
from tests.assay import Assay
from tests.cluster.errors import ClusterError
from tests.cluster.settings import REPOSITORY
from tests.e2e.clients import CLIENT, Load

TASK = "task"
"""The folder on the claim `models` with the base model and its items."""
REPLICAS = "2/2"
SHARE = "0.9"
"""Of the base model in what is brought as worse: it answers much, and much less than it could."""
# Enough to notice the smallest gap, and little enough to leave the cores to training.
THREADS, PAUSE = 2, 0.5
READY_SECONDS, TRAINED_SECONDS, ROLLOUT_SECONDS = 300, 600, 300
PICTURE = REPOSITORY / "demo" / "curve.png"
TOLD = "jsonpath={.status.rollout.message}"
TARGET = 'jsonpath={.status.conditions[?(@.type=="Target")].message}'
HISTORY = (
    'jsonpath={range .status.history[*]}{.finished}{"\\t"}{.result}{"\\t"}{.name}{"\\t"}'
    '{.reason}{"\\n"}{end}'
)


@dataclass
class Story:
    """One telling.

    Attributes:
        assay: what is on the cluster.
        stage: where it is played.
        began: when, in seconds since the epoch.
    """

    assay: Assay
    stage: Stage
    began: float = 0.0

    def tell(self) -> None:
        """All of it, from the first chapter on.

        Raises:
            ClusterError: something did not come to what the story is about.
            NotYet: requests were not answered.
        """
        self.began = time.time()
        with self._chapter(
            "The base model is served",
            "Two replicas of a model of 0.4 million parameters. It knows how to sort numbers, but "
            "not which way round. It shall follow a job that is not there yet.",
        ):
            base, before = self._serve()
        with Load(self.stage.kube, SERVICE, THREADS, PAUSE) as load:
            with self._chapter(
                "Users come",
                f"From now on {THREADS} users in the pod {CLIENT} ask without end, through Service "
                "and router, and note each answer and which weights made it.",
            ):
                load.wait_for_answers(10)
                self.stage.teller.say(f"{load.answers()} requests, {len(load.failures())} failed.")
            with self._chapter(
                "A job trains, its checkpoints are weighed, the service takes the best",
                "One folder: held-out items, job and service. A checkpoint has to reach "
                "evaluation.minScore, then to pass the gate beside what serves, on a replica that "
                "nobody is routed to. Then it comes into the other engine, which goes on running.",
            ):
                best = self._train(load)
            with self._chapter(
                "Better answers from the same pods", "The same items, asked of the live service."
            ):
                after = self.stage.score("after")
                for word, score in (("before", before), ("after", after)):
                    self.stage.teller.output(f"{word:>6} {looks.bar(score.mean)} {score}")
            with self._chapter(
                "The picture", "What the trainer noted at each step, and what users got of it."
            ):
                self._draw(before)
                self.stage.teller.say(f"Drawn into {PICTURE.relative_to(REPOSITORY)}")
            with self._chapter(
                "A damaged checkpoint is refused",
                f"Somebody brings two more. {SPOILT} is a copy of {best} of which some bytes are "
                f"others, under the digest of the good one. {WORSE} is sound in every file, and "
                "its weights are most of the way back to the base model's.",
            ):
                self._bring(best)
                self._refuse(load)
            with self._chapter(
                "A worse one is turned away at the canary",
                f"{WORSE} answers some items, so its own low bar verifies it. The gate asks it "
                "beside what serves, and then the canary takes back what it had.",
            ):
                self._turn_away(load)
            with self._chapter("The end", "What the users noticed of all this."):
                load.wait_for_answers(10)
                self.stage.chat()
        self._draw(before)
        self._sum_up(load.lines, base)

    def _chapter(self, title: str, why: str) -> AbstractContextManager[None]:
        return self.stage.teller.chapter(title, why)

    def _serve(self) -> tuple[str, Score]:
        """The version of the base model, and how it scores."""
        stage = self.stage
        stage.typed("apply", "-f", f"{FOLDER}/suite.yaml", "-f", f"{FOLDER}/service.yaml")
        stage.kube.apply(client(self.assay))
        stage.follow("both replicas to be ready", READY_SECONDS, _is_ready, rows=_readiness)
        stage.kube.kubectl("wait", f"pod/{CLIENT}", "--for=condition=Ready", "--timeout=120s")
        stage.typed("get", "infsvc")
        stage.chat()
        return stage.seen.served, stage.score("before")

    def _train(self, load: Load) -> str:
        """The name of the Checkpoint that is served in the end.

        Raises:
            ClusterError: none of the job's is.
        """
        self.stage.typed("apply", "-f", f"{FOLDER}/")
        self.stage.follow(
            "the job's end, and its best checkpoint to be served",
            TRAINED_SECONDS,
            looks.trained_and_served,
            load,
        )
        seen = self.stage.seen
        for item in seen.checkpoints:
            if item["spec"].get("digest") == seen.served:
                return looks.name_of(item)
        told = [
            by_type(seen.job).get(kind, {}).get("message", "") for kind in ("Failed", "Verified")
        ]
        raise ClusterError(
            f"no checkpoint of {JOB} is served. {' '.join(told)} {seen.rollout.get('message', '')}"
        )

    def _bring(self, best: str) -> None:
        """Two bad checkpoints, made of a good one."""
        good = self.stage.seen.checkpoint(best)["spec"]
        folder = good["source"].replace("pvc://models", "/models")
        base = f"/models/{TASK}/model"
        for words in (
            ("spoil", folder, f"/models/{SPOILT}"),
            ("mix", folder, base, f"/models/{WORSE}", "--share", SHARE),
        ):
            program = ("exec", "-i", CLIENT, "--", "python3", "-")
            self.stage.typed(*program, *words, file="examples/tamper.py")
        self.stage.apply(brought(SPOILT, 0.5, good["digest"]), brought(WORSE, 0.2))

    def _refuse(self, load: Load) -> None:
        self._judged(SPOILT, "Intact", load)
        self.stage.pin(SPOILT)
        self._aims("CheckpointNotIntact", load)
        self.stage.typed("get", "infsvc", SERVICE, "-o", TARGET)

    def _turn_away(self, load: Load) -> None:
        stage = self.stage
        self._judged(WORSE, "Verified", load)
        stage.typed("get", "ckpt")
        stage.pin(WORSE)
        stage.follow(
            f"the gate to judge {WORSE}",
            ROLLOUT_SECONDS,
            lambda seen: seen.target == WORSE and seen.rollout.get("phase") in OVER,
            load,
        )
        stage.typed("get", "infsvc", SERVICE, "-o", TOLD)
        stage.typed("get", "infsvc", SERVICE, "-o", HISTORY)
        load.wait_for_answers(5)
        digest = stage.seen.checkpoint(WORSE)["status"]["digest"]
        count = sum(line["version"] == digest for line in load.lines)
        stage.teller.say(f"Requests that {WORSE} answered: {count}. The service follows again.")
        stage.typed("apply", "-f", f"{FOLDER}/service.yaml")
        self._aims("Following", load)

    def _judged(self, name: str, kind: str, load: Load) -> None:
        self.stage.follow(
            f"a verdict on {name}",
            ROLLOUT_SECONDS,
            lambda seen: bool(looks.verdict(seen.checkpoint(name), kind)),
            load,
        )

    def _aims(self, reason: str, load: Load) -> None:
        self.stage.follow(
            f"the service's condition Target to say {reason}",
            ROLLOUT_SECONDS,
            lambda seen: by_type(seen.service).get("Target", {}).get("reason") == reason,
            load,
        )

    def _draw(self, before: Score) -> None:
        file = PICTURE.with_name("metrics.jsonl")
        file.parent.mkdir(exist_ok=True)
        words = ("exec", CLIENT, "--", "cat", f"/models/{JOB}/{file.name}")
        file.write_text(self.stage.kube.kubectl(*words))
        seen = self.stage.seen
        picture.draw(
            metrics.read(file),
            picture.marks(seen.service.get("history") or (), looks.scores(seen)),
            first=before.mean,
            began=self.began,
            ended=time.time(),
            path=PICTURE,
        )

    def _sum_up(self, answers: Sequence[Json], base: str) -> None:
        teller = self.stage.teller
        history = self.stage.seen.service.get("history") or []
        names = {**looks.names(history), base: "the base model"}
        told = [f"{count} by {name}" for name, count in looks.by_version(answers, names)]
        failed = [line["error"] for line in answers if line["error"]]
        teller.say(f"Requests: {len(answers)}; answered {', '.join(told)}.")
        teller.say(
            f"Answered by weights that never passed: {looks.strangers(answers, history, base)}."
        )
        teller.say(f"Failed requests: {len(failed)}.")
        for error in sorted(set(failed)):
            teller.output(f"  {failed.count(error)} x {error}")
        table = Table("chapter", "seconds")
        for title, seconds in teller.chapters:
            table.add_row(title, f"{seconds:.0f}")
        table.add_row("all", f"{sum(seconds for _, seconds in teller.chapters):.0f}")
        teller.console.print(table)


def _is_ready(seen: Look) -> bool:
    ready = by_type(seen.service).get("Ready", {}).get("status") == "True"
    return ready and seen.service.get("routable") == REPLICAS


def _readiness(seen: Look) -> Rows:
    ready = by_type(seen.service).get("Ready", {})
    told = f"{ready.get('reason', 'waiting')}: {ready.get('message', '')}"
    return [("service", f"{seen.service.get('routable', '')} {told}".strip())]


def remove_pictures() -> Path | None:
    """Removes what stories left in the checkout; its folder, None where there was none."""
    folder = PICTURE.parent
    if not folder.exists():
        return None
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return folder
