"""The Job that inspects, and where it is asked for weighs, a Checkpoint that somebody brings."""

from __future__ import annotations

from dataclasses import dataclass

from assay_operator.api.checkpoint import CheckpointSpec, Weighing
from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.config import OperatorConfig
from assay_operator.inference.jobs import (
    INSPECT,
    WEIGH,
    Mount,
    Named,
    OwnEngine,
    Questions,
    inspection_job,
    network_policy,
    weighing_job,
)
from assay_operator.inference.objects import MODEL_MOUNT, Identity, engine_template, parse_source
from assay_operator.inference.profiles import profile_of
from assay_operator.plan import MANAGED_BY, MANAGED_BY_LABEL, OWNER_LABEL, Json, Ref
from assay_verifiers.config import GateLimits

MAX_TOKENS = 2048
"""Of an answer to an item that names no length, as in a rollout's gate."""
ASKING_SECONDS = 2 * 3600
"""Of all the asking. Nobody waits for it as for a rollout's, so it may take its time."""
_UNWEIGHED = "unweighed"
"""What the engine reports where nobody knows the digest yet."""


@dataclass(frozen=True)
class Names:
    """The names of a Checkpoint's children."""

    name: str
    namespace: str

    @property
    def job(self) -> Ref:
        return Ref("Job", f"{self.name}-weigh")

    def named(self) -> Named:
        """The Job's."""
        labels = {
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/part-of": "assay",
            MANAGED_BY_LABEL: MANAGED_BY,
            OWNER_LABEL: f"checkpoint.{self.name}",
        }
        return Named(self.job.name, self.namespace, labels)


def objects(names: Names, spec: CheckpointSpec, config: OperatorConfig) -> tuple[Json, ...]:
    """The Job, and what its pod may reach: nothing.

    Raises:
        UnsupportedProfile: there is no engine as it is asked for.
    """
    source = parse_source(spec.source)
    mounts = (Mount("model", source.volume, MODEL_MOUNT),)
    named = names.named()
    if spec.evaluation is None:
        job = inspection_job(
            named,
            config,
            candidate=source.path,
            incumbent=None,
            mounts=mounts,
            engine_template={},
            digest=spec.digest,
        )
        return network_policy(named, INSPECT), job
    wanted = spec.evaluation
    job = weighing_job(
        named,
        config,
        Questions(
            config_map=wanted.suite.configMap,
            key=wanted.suite.key,
            limits=GateLimits(minScore=wanted.minScore, confidence=wanted.confidence),
            items=None,
            max_tokens=MAX_TOKENS,
            timeout_seconds=ASKING_SECONDS,
        ),
        digest=spec.digest,
        mounts=mounts,
        engine=_engine(names, spec, wanted, config),
    )
    return network_policy(named, WEIGH), job


def _engine(
    names: Names, spec: CheckpointSpec, wanted: Weighing, config: OperatorConfig
) -> OwnEngine:
    """An engine as a service of the same spec would have it."""
    engine = wanted.engine
    profile = profile_of(engine)
    service = InferenceServiceSpec.model_validate(
        {"model": {"source": spec.source}, "engine": engine.model_dump(exclude_none=True)}
    )
    template = engine_template(Identity(names.name, names.namespace), service, profile, config)
    path = parse_source(spec.source).path
    return OwnEngine(template, path, spec.digest or _UNWEIGHED, profile.startup_seconds)
