"""Strategic merge of pod templates, as `kubectl patch` does it.

The API server merges only on its own side and only into objects that exist; a planner needs the
result before there is one. The merge keys are those of the Kubernetes API's `patchMergeKey` tags.
"""

from __future__ import annotations

from typing import Any

from assay_operator.plan import Json

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
# One entry of these says where something comes from: half of the old source and half of the new
# one would be invalid, so an entry of the same name replaces the whole.
_REPLACED_WHOLE = frozenset({"volumes", "env"})


def strategic_merge(base: Json, patch: Json) -> Json:
    """`base` with `patch` laid over it; neither is changed.

    Maps are merged key by key and null removes a key. Lists of named things are merged by their
    key, an entry with `$patch: delete` removes the one of that name; other lists are replaced.
    A map with `$patch: replace` replaces the whole map.
    """
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_value(key, merged.get(key), value)
    return merged


def _merge_value(key: str, old: Any, new: Any) -> Any:
    if isinstance(new, dict):
        return strategic_merge(old if isinstance(old, dict) else {}, new)
    if isinstance(new, list) and key in _MERGE_KEYS:
        return _merge_list(old if isinstance(old, list) else [], new, key)
    return new


def _merge_list(old: list[Any], new: list[Any], field: str) -> list[Any]:
    key = _MERGE_KEYS[field]
    merged: dict[Any, Any] = {item.get(key): item for item in old}
    for item in new:
        name = item.get(key)
        if item.get("$patch") == "delete":
            merged.pop(name, None)
        elif field in _REPLACED_WHOLE or name not in merged:
            merged[name] = strategic_merge({}, item)
        else:
            merged[name] = strategic_merge(merged[name], item)
    return list(merged.values())
