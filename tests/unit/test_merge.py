"""Overrides of a pod template behave as `kubectl patch` would."""

from __future__ import annotations

from assay_operator.inference.merge import strategic_merge

BASE = {
    "spec": {
        "nodeSelector": {"a": "1"},
        "tolerations": [{"key": "x"}],
        "containers": [
            {
                "name": "engine",
                "image": "one",
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
}


def merged(spec: dict) -> dict:
    return strategic_merge(BASE, {"spec": spec})["spec"]


def test_maps_are_merged_and_null_removes_a_key() -> None:
    assert merged({"nodeSelector": {"b": "2"}})["nodeSelector"] == {"a": "1", "b": "2"}
    assert merged({"nodeSelector": {"a": None}})["nodeSelector"] == {}
    assert "nodeSelector" not in merged({"nodeSelector": None})


def test_containers_are_merged_by_name_and_new_ones_added() -> None:
    result = merged(
        {"containers": [{"name": "engine", "image": "two"}, {"name": "side", "image": "s"}]}
    )
    assert [item["name"] for item in result["containers"]] == ["engine", "side"]
    assert result["containers"][0]["image"] == "two"
    assert result["containers"][0]["env"] == BASE["spec"]["containers"][0]["env"]


def test_environment_variables_are_replaced_whole_by_name() -> None:
    source = {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    result = merged({"containers": [{"name": "engine", "env": [source]}]})
    assert result["containers"][0]["env"] == [source, {"name": "B", "value": "2"}]


def test_a_volume_of_the_same_name_gets_the_new_source_only() -> None:
    assert merged({"volumes": [{"name": "tmp", "hostPath": {"path": "/x"}}]})["volumes"] == [
        {"name": "tmp", "hostPath": {"path": "/x"}}
    ]


def test_an_entry_is_deleted_on_request() -> None:
    assert merged({"volumes": [{"name": "tmp", "$patch": "delete"}]})["volumes"] == []


def test_lists_without_a_merge_key_are_replaced() -> None:
    assert merged({"tolerations": [{"key": "y"}]})["tolerations"] == [{"key": "y"}]


def test_a_whole_map_is_replaced_on_request() -> None:
    assert merged({"nodeSelector": {"$patch": "replace", "c": "3"}})["nodeSelector"] == {"c": "3"}


def test_the_base_is_never_changed() -> None:
    before = repr(BASE)
    merged({"containers": [{"name": "engine", "image": "two"}], "volumes": []})
    assert repr(BASE) == before
