"""What it takes to say what a service shall serve, and how that is said. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.api.sources import CHECKPOINT_SCHEME
from assay_operator.conditions import Verdict
from assay_operator.inference.memory import Memory, Rollback
from assay_operator.inference.objects import (
    CHECKPOINTS_MOUNT,
    MODEL_MOUNT,
    Layout,
    parse_source,
)
from assay_operator.inference.observation import Observation, condition_of
from assay_operator.inference.places import Place
from assay_operator.inference.rollout_world import Target
from assay_operator.plan import Json, Ref

FEWEST_DIGITS = 6
"""Of a digest, by which it may be named if no other one begins with them."""
_DIGEST = "sha256:"


@dataclass(frozen=True)
class Choice:
    """What a service shall serve.

    Attributes:
        target: the weights; None where nobody can say which, and nothing is served.
        verdict: whether they are what the spec asks for, and why; what to do where they are not.
        gated: whether they have to pass the gate: what passed it here before has not.
        others: what engines' pods shall mount beside them, so that they can be changed in place.
        retry: the version that the user asks for again though it was refused.
        rollback: what the annotation says that takes weights back, to be remembered.
        waits: whether something is missing whose coming no watch announces.
        pointer: what engines start with as things stand in the cluster, None where they do not.
    """

    target: Target | None
    verdict: Verdict
    others: Layout = field(default_factory=dict)
    retry: str | None = None
    rollback: Rollback | None = None
    waits: bool = False
    gated: bool = True
    pointer: Target | None = None


@dataclass(frozen=True)
class Case:
    """Everything that a choice is made from.

    Attributes:
        observation: what is seen of the service.
        spec: what the user wants.
        memory: what the service's status says.
        retry: the version that the user asks for again, as far as one is known.
        pointer: what engines start with as things stand in the cluster.
    """

    observation: Observation
    spec: InferenceServiceSpec
    memory: Memory
    retry: str | None = None
    pointer: Target | None = None

    @property
    def namespace(self) -> str:
        return str(self.observation.service["metadata"]["namespace"])

    @property
    def source(self) -> Target | None:
        """spec.model.source, where that names a place."""
        if self.spec.model.source.startswith(CHECKPOINT_SCHEME):
            return None
        source = parse_source(self.spec.model.source)
        within = source.path.removeprefix(MODEL_MOUNT).strip("/")
        path = Place(source.key, within).path(self.layout, MODEL_MOUNT)
        return Target(source.version, path, self.spec.model.source, source.key)

    @property
    def layout(self) -> Layout:
        """What pods mount, or will."""
        if self.memory.layout is not None:
            return self.memory.layout
        return self.of_source

    @property
    def of_source(self) -> dict[str, str]:
        """What pods mount for spec.model.source."""
        if self.spec.model.source.startswith(CHECKPOINT_SCHEME):
            return {}
        return {MODEL_MOUNT: parse_source(self.spec.model.source).key}

    def stays(self) -> Target | None:
        """What is served, or was about to be, where the spec cannot be followed."""
        return self.memory.served or self.source or self.pointer

    def of_checkpoint(self, item: Json, claim: str | None = None) -> Target | None:
        """A Checkpoint's weights; None while nobody knows their digest.

        Args:
            item: the Checkpoint.
            claim: of the service's namespace that shows its files. Default: its own.
        """
        version = digest_of(item)
        if version is None:
            return None
        own, _, within = item["spec"]["source"].removeprefix("pvc://").partition("/")
        place = Place(f"pvc/{claim or own}", within.strip("/"))
        path = place.path(self.layout, CHECKPOINTS_MOUNT)
        return Target(version, path, item["metadata"]["name"], place.volume)

    def lacks(self, kind: str, name: str) -> bool:
        """Whether it is known that an object of the user's is not there."""
        return self.found.get(Ref(kind, name), {}) is None

    @property
    def found(self) -> Mapping[Ref, Json | None]:
        return self.observation.found


def digest_of(checkpoint: Json) -> str | None:
    """The version of a Checkpoint's weights, None while nobody knows it."""
    told = checkpoint["spec"].get("digest")
    return told or (checkpoint.get("status") or {}).get("digest")


def holds(item: Json, kind: str) -> bool:
    """Whether a condition of an object is true."""
    found = condition_of(item, kind)
    return found is not None and found["status"] == "True"


def said(item: Json, kind: str) -> str:
    """What a condition of an object says, as the end of a sentence."""
    found = condition_of(item, kind)
    return found["message"] if found and found.get("message") else "it was not looked at yet."


def goes(item: Json) -> bool:
    """Whether an object is on its way out."""
    return bool(item["metadata"].get("deletionTimestamp"))


def names(asked: str, version: str) -> bool:
    """Whether `asked` means `version`: the whole of it, or its beginning."""
    if asked == version:
        return True
    digits = asked.removeprefix(_DIGEST)
    return len(digits) >= FEWEST_DIGITS and version.removeprefix(_DIGEST).startswith(digits)
