"""Where weights lie: volumes, the places where engines' pods see them, and what a pod really sees.

A path alone names no bytes: pods of an older template may see another volume in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from assay_operator.inference.objects import CHECKPOINTS_MOUNT, MODEL_MOUNT, Layout
from assay_operator.inference.objects import volume_key as key_of
from assay_operator.inference.results import ENGINE
from assay_operator.inference.rollout_world import Target
from assay_operator.plan import Json

MOUNTS = (MODEL_MOUNT, CHECKPOINTS_MOUNT)
ANY = "*"
"""The key of a volume of a kind that only overrides bring: what it holds is the user's affair."""
_NOBODYS = {mount: f"pvc/nobodys{mount}" for mount in MOUNTS}


@dataclass(frozen=True)
class Place:
    """A folder on a volume.

    Attributes:
        volume: its key.
        within: the folder; empty for the volume's root.
    """

    volume: str
    within: str

    def path(self, layout: Layout, otherwise: str) -> str:
        """Where a pod of this layout sees it; below `otherwise` if it does not mount the volume."""
        seen = (mount for mount in MOUNTS if layout.get(mount) == self.volume)
        return f"{next(seen, otherwise)}/{self.within}".rstrip("/")


def place_of(target: Target) -> Place:
    """Where the target's weights lie, whoever sees them."""
    within = target.path.removeprefix(mount_of(target)).strip("/")
    return Place(target.volume, within)


def mount_of(target: Target) -> str:
    """The place below which engines see the target."""
    path = f"{target.path}/"
    return next((mount for mount in MOUNTS if path.startswith(f"{mount}/")), MODEL_MOUNT)


def layout_for(target: Target, others: Layout) -> dict[str, str]:
    """What pods mount that are to start with `target` and may load from `others` later."""
    mine = mount_of(target)
    found = {mine: target.volume}
    return {**found, **additions(found, others)}


def additions(layout: Layout, others: Layout) -> dict[str, str]:
    """The part of `others` that fits into free places of `layout` and is not seen there yet."""
    return {
        mount: key
        for mount, key in others.items()
        if mount not in layout and key not in layout.values()
    }


def mounts(item: Json) -> Layout | None:
    """What the engine in a pod, or in pods of a template, sees; None where that cannot be read."""
    spec = item.get("spec") or {}
    containers = spec.get("containers") or []
    engine = next((each for each in containers if each.get("name") == ENGINE), None)
    if engine is None:
        return None
    volumes = {each["name"]: each for each in spec.get("volumes") or []}
    seen = {each["mountPath"]: each["name"] for each in engine.get("volumeMounts") or []}
    return {mount: key_of(volumes.get(seen[mount], {})) or ANY for mount in MOUNTS if mount in seen}


def overridden(render: Callable[[Layout], Json]) -> frozenset[str]:
    """The places where overrides put a volume of their own, whatever the layout says.

    Args:
        render: the pod template of a layout, with all overrides.
    """
    seen = mounts(render(_NOBODYS)) or {}
    return frozenset(mount for mount, key in _NOBODYS.items() if seen.get(mount) != key)


def provides(pod: Json, target: Target, free: frozenset[str]) -> bool:
    """Whether the target's path names the target's weights in this pod.

    Args:
        pod: an engine's.
        target: any weights.
        free: the places that overrides fill (`overridden`).
    """
    seen, mount = mounts(pod), mount_of(target)
    if seen is None:
        return True
    return mount in seen and (mount in free or seen[mount] in {ANY, target.volume})


def really(pod: Json, version: str, targets: Iterable[Target], free: frozenset[str]) -> str:
    """What an engine has that reports `version`.

    That name stands for a place on a volume. Where the pod sees another volume there, other bytes
    bear the name, and what it has is named by their own place.
    """
    seen = mounts(pod) or {}
    for target in targets:
        mount = mount_of(target)
        if target.version == version and mount in seen and not provides(pod, target, free):
            return f"{seen[mount]}/{place_of(target).within}"
    return version
