"""From an InferenceService and what is seen of it to what shall be done: one pure function.

What shall be served is chosen in targets.py, and how it comes into engines is decided in
rollout.py. Here both are made from what is seen, and the plan from both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import ValidationError

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.api.meta import seconds
from assay_operator.conditions import Verdict, refusal
from assay_operator.config import OperatorConfig
from assay_operator.inference import activation
from assay_operator.inference import status as report
from assay_operator.inference.children import desired
from assay_operator.inference.drivers import driver_objects
from assay_operator.inference.memory import Memory, Notes, kept, recall, with_notes
from assay_operator.inference.objects import (
    FINISH_SECONDS,
    Identity,
    Layout,
    engine_template,
    fingerprint,
    workers_document,
)
from assay_operator.inference.observation import Observation
from assay_operator.inference.places import (
    additions,
    layout_for,
    mount_of,
    overridden,
    provides,
)
from assay_operator.inference.profiles import EngineProfile, UnsupportedProfile, profile_of
from assay_operator.inference.replicas import (
    Fleet,
    Membership,
    membership,
    nudges,
)
from assay_operator.inference.results import JobResult
from assay_operator.inference.rollout import step
from assay_operator.inference.rollout_state import Rollout, read
from assay_operator.inference.rollout_world import Policy, Replica, Step, Target, World
from assay_operator.inference.scaling import fleet_size, scene, wanted
from assay_operator.inference.scaling_status import Told, tell
from assay_operator.inference.targets import Choice, choose, suite_missing
from assay_operator.inference.targets_case import digest_of
from assay_operator.inference.templates import is_held
from assay_operator.inference.trials import Trial, results, scores, trial_objects
from assay_operator.plan import Action, Json, Load, Plan, Ref, Restart

SETTLED_SECONDS = 30.0
"""How often a service in order is looked at: nothing tells us that an engine stopped answering."""
UNSETTLED_SECONDS = 1.0
"""How often while an answer over HTTP is awaited, which no watch announces."""
AT_ONCE_SECONDS = 0.1
"""Another number of replicas is carried out once it is written."""
MISSING_SECONDS = 3.0
"""How often while an object of the user's is missing, which no watch announces either."""
START_SLACK_SECONDS = 600.0
"""A new pod may wait for its image and its volumes so long beyond the engine's own start."""


def plan(observation: Observation, config: OperatorConfig, now: datetime) -> Plan:
    """What shall be done about one InferenceService.

    Args:
        observation: what is seen of it.
        config: the administrator's defaults.
        now: the time, with a zone.

    Returns:
        the complete children, status, Events and actions. A spec that cannot be carried out gives
        a plan that says so in status and touches no child.
    """
    try:
        spec = InferenceServiceSpec.model_validate(observation.service["spec"])
        profile = profile_of(spec.engine)
    except (ValidationError, UnsupportedProfile) as error:
        return _refused(observation, refusal(error), now)
    memory = recall(observation.service.get("status") or {})
    choice = choose(observation, spec, memory)
    if choice.target is None:
        look = MISSING_SECONDS if choice.waits else SETTLED_SECONDS
        return _refused(observation, choice.verdict, now, ("Applied", "Ready", "Target"), look)
    there = spec.model_copy(update={"replicas": fleet_size(spec, observation)})
    return _Planner(
        observation, config, now, spec, there, profile, memory, choice, choice.target
    ).plan()


def _refused(
    observation: Observation,
    verdict: Verdict,
    now: datetime,
    kinds: tuple[str, ...] = ("Applied", "Ready"),
    next_look: float = SETTLED_SECONDS,
) -> Plan:
    status = report.refused_status(observation, verdict, now, kinds)
    return Plan(
        status=status,
        events=report.events(observation.service.get("status") or {}, status),
        next_look=next_look,
        prune=False,
    )


@dataclass(frozen=True)
class _Planner:
    """The planning of one service whose spec can be carried out.

    `asked` is the spec as it stands, `spec` the same with the replicas that there are to be.
    """

    observation: Observation
    config: OperatorConfig
    now: datetime
    asked: InferenceServiceSpec
    spec: InferenceServiceSpec
    profile: EngineProfile
    memory: Memory
    choice: Choice
    target: Target

    @property
    def identity(self) -> Identity:
        metadata = self.observation.service["metadata"]
        return Identity(metadata["name"], metadata["namespace"])

    @property
    def old(self) -> Json:
        """The status as it stands."""
        return self.observation.service.get("status") or {}

    def plan(self) -> Plan:
        free = self._free()
        known = self.memory.known
        fleet = Fleet(self.observation, self.identity, self.target, known, free, self.now)
        found = fleet.replicas()
        outcomes = self._outcomes()
        made = step(self.old.get("rollout"), self._world(found, outcomes))
        rollout = read(made.state)
        group = membership(self.observation, self.identity, found, made)
        layout = self._layout(made, rollout)
        template = self._template(made.template, layout)
        document = workers_document(group.members.values())
        notes = self._notes(made, rollout, layout, outcomes)
        told = tell(self.observation, self.asked, self.config, self.now)
        move = activation.step(
            scene(
                self.observation,
                self.asked,
                routable=len(group.routable),
                now=self.now,
            )
        )
        facts = self._facts(made, rollout, notes, group, found, told=told, move=move)
        status = report.status(self.observation, facts, self.now)
        trial = Trial(self.identity, self.spec, self.config, self.profile, template)
        there = self.observation.children.get(Ref("Deployment", self.identity.engine))
        return Plan(
            objects=(
                *desired(
                    self.identity,
                    self.spec,
                    self.profile,
                    self.config,
                    template=template,
                    pointer=made.pointer,
                    workers=document,
                    move=move,
                    surge=made.surge,
                    halted=made.halted or is_held(self.observation, template, there),
                ),
                *driver_objects(self.identity, self.asked, self.config),
                *trial_objects(
                    trial,
                    made,
                    self.memory.rollout,
                    self.observation,
                    found,
                    outcomes=outcomes,
                ),
            ),
            status=status,
            events=(
                *made.events,
                *told.events,
                *move.events,
                *report.events(self.old, status),
            ),
            actions=(
                *nudges(self.observation, fingerprint(document)),
                *self._actions(made, rollout, free),
            ),
            next_look=min(
                self._next_look(made, rollout, group),
                move.look,
                AT_ONCE_SECONDS if told.acts else SETTLED_SECONDS,
            ),
        )

    def _world(self, found: tuple[Replica, ...], outcomes: Mapping[str, JobResult]) -> World:
        return World(
            now=self.now,
            target=self.target,
            served=self.memory.served,
            replicas=found,
            wanted=self.spec.replicas,
            policy=self._policy(),
            results=outcomes,
            retry=self.choice.retry,
            refused=self.memory.refused,
            history=self.memory.history,
            pointer=self.choice.pointer,
            gated=self.choice.gated,
        )

    def _policy(self) -> Policy:
        wanted, start = self.spec.rollout, float(self.profile.startup_seconds)
        gate = wanted.gate
        return Policy(
            strategy=wanted.strategy,
            in_flight=wanted.inFlight,
            max_unavailable=self.spec.max_unavailable,
            hold=seconds(wanted.canary.hold),
            paused=wanted.paused,
            gate=gate is not None,
            min_score=gate is not None and gate.minScore is not None,
            # One that has an engine of its own has to wait for its start.
            gate_seconds=start + (seconds(gate.timeout) if gate else 0),
            start_seconds=start + START_SLACK_SECONDS,
            drain_seconds=FINISH_SECONDS,
        )

    def _outcomes(self) -> dict[str, JobResult]:
        rollout = self.memory.rollout
        return results(
            self.observation,
            self.identity,
            self.spec,
            rollout.job if rollout else None,
            missing=suite_missing(self.observation, self.spec),
            now=self.now,
        )

    def _template(self, version: str, layout: Layout) -> Json:
        return engine_template(
            self.identity, self.spec, self.profile, self.config, version=version, layout=layout
        )

    def _free(self) -> frozenset[str]:
        """The places where overrides mount volumes of their own."""
        kind = self.spec.engine.accelerator.partition("-")[0]
        if not (self.spec.template or self.config.engine.templates.get(kind)):
            return frozenset()
        return overridden(lambda layout: self._template("", layout))

    def _layout(self, made: Step, rollout: Rollout | None) -> dict[str, str]:
        """What the engines' pods mount.

        It belongs to the template's version: another layout is another template, for which all
        pods are made anew. So it stays while weights change in place, and comes back with the
        version where a rollout goes back. Only a volume that the spec asks for besides is added,
        while nothing else is going on and nothing is paused.
        """
        known = self.memory.notes.layouts.get(made.template)
        if known is None:
            return layout_for(made.pointer, self.choice.others)
        before, mine = self.memory.rollout, mount_of(made.pointer)
        if known.get(mine) != made.pointer.volume:
            known = {**known, mine: made.pointer.volume}
        rests = before and before.over and rollout and rollout.over
        if rests and not self.spec.rollout.paused:
            return {**known, **additions(known, self.choice.others)}
        return known

    def _facts(
        self,
        made: Step,
        rollout: Rollout | None,
        notes: Notes,
        group: Membership,
        found: Iterable[Replica],
        *,
        told: Told,
        move: activation.Move,
    ) -> report.Facts:
        versions = {each.uid: each.version for each in found}
        served = {versions[uid] or made.pointer.version for uid in group.routable}
        return report.Facts(
            identity=self.identity,
            spec=self.spec,
            number=wanted(self.asked, self.old),
            wanted=self.target,
            target=self.choice.verdict,
            step=made,
            rollout=rollout,
            state=with_notes(made.state, notes) if made.state is not None else None,
            served=tuple(sorted(served)),
            routable=len(group.routable),
            score=self._score(made.served, notes),
            kernels=self.profile.kernels,
            told=told,
            move=move,
        )

    def _notes(
        self,
        made: Step,
        rollout: Rollout | None,
        layout: Layout,
        outcomes: Mapping[str, JobResult],
    ) -> Notes:
        known = self.memory.notes
        found = {**known.scores, **scores(self.memory.rollout, outcomes)}
        notes = replace(known, scores=found, rollback=self.choice.rollback)
        if rollout is None:
            return notes
        return kept(notes, rollout, made.template, layout, made.history)

    def _score(self, served: Target | None, notes: Notes) -> float | None:
        """Of what is served: what the gate found here, or else what its Checkpoint says."""
        if served is None:
            return None
        if served.version in notes.scores:
            return notes.scores[served.version]
        for item in self.observation.checkpoints:
            if digest_of(item) == served.version:
                score: float | None = (item.get("status") or {}).get("score")
                return score
        before = self.old.get("served") or {}
        same = before.get("version") == served.version
        return self.old.get("score") if same else None

    def _actions(
        self, made: Step, rollout: Rollout | None, free: frozenset[str]
    ) -> Iterator[Action]:
        """The step's actions. Where a pod sees another volume than the one that the weights lie on,
        a load would give it other bytes under their name: such a pod is made anew."""
        pods = {pod["metadata"]["name"]: pod for pod in self.observation.engines}
        places = (rollout.origin, rollout.target) if rollout else ()
        for action in made.actions:
            if isinstance(action, Load):
                place = next((each for each in places if each.version == action.version), None)
                if place is None or not provides(pods[action.pod], place, free):
                    if not self.spec.rollout.paused:
                        yield Restart(action.pod)
                    continue
            yield action

    def _next_look(self, made: Step, rollout: Rollout | None, group: Membership) -> float:
        looks = [UNSETTLED_SECONDS if group.awaited else SETTLED_SECONDS]
        if self.choice.waits:
            looks.append(MISSING_SECONDS)
        # A first note of what is served opens nothing, so nobody has to hurry for it.
        noted = self.memory.rollout is None and (rollout is None or rollout.over)
        if not noted or made.actions:
            looks.append(made.next_look)
        return min(looks)
