"""What the chart's admission policies refuse, by their rules as they stand in the template.

tests/integration asks a real API server, which also knows who asks.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from cel_expr_python import cel

from assay_operator.api.schema import KINDS
from assay_operator.plan import EVALUATION_ANNOTATION, OWNER_LABEL, Json
from tests.unit.test_chart import CHART

_ENVIRONMENT = cel.NewEnv(
    # Optional values, which the API server's CEL has had since Kubernetes 1.28.
    config=cel.NewEnvConfigFromYaml("name: admission\nextensions: [{name: optional}]\n"),
    variables=dict.fromkeys(("object", "oldObject", "request", "variables"), cel.Type.DYN),
)
WEIGHED = {EVALUATION_ANNOTATION: '{"verified": true, "score": 1.0}'}
MADE_BY = {"name": "solver-rl", "uid": "0-1", "step": 20, "version": "1.20"}


def policies() -> dict[str, Json]:
    """The specs of the policies, by the first part of their names, without what Helm puts in."""
    text = (CHART / "templates" / "admissionpolicy.yaml").read_text()
    found = yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", "", text, flags=re.DOTALL))
    return {
        item["metadata"]["name"].rstrip("."): item["spec"]
        for item in found
        if item["kind"] == "ValidatingAdmissionPolicy"
    }


def refusal(new: Json, old: Json | None = None) -> str:
    """What is said to somebody else than the operator who creates or changes a Checkpoint; empty
    where nothing is said against it."""
    spec = policies()["checkpoints"]
    known: dict[str, Any] = {
        "object": new,
        "oldObject": old,
        "request": {"operation": "UPDATE" if old else "CREATE"},
        "variables": {},
    }

    def value(expression: str) -> Any:
        found = _ENVIRONMENT.compile(expression).eval(data=known)
        assert found.type() != cel.Type.ERROR, f"{expression}: {found.value()}"
        return found.plain_value()

    for variable in spec["variables"]:
        known["variables"][variable["name"]] = value(variable["expression"])
    for rule in spec["validations"]:
        if value(rule["expression"]) is not True:
            return str(rule["message"])
    return ""


def checkpoint(job: Json | None = None, **metadata: Any) -> Json:
    given = {"job": job} if job else {}
    return {
        "metadata": {"name": "mine", **metadata},
        "spec": {"source": "pvc://runs/mine", **given},
    }


OURS = checkpoint(
    MADE_BY, annotations=WEIGHED, labels={OWNER_LABEL: "verifiedrljob.solver-rl", "a": "b"}
)
"""One that the operator made for a job."""


@pytest.mark.parametrize(
    "brought",
    [
        checkpoint(),
        checkpoint(labels={"team": "a", "app.kubernetes.io/managed-by": "Helm"}),
        checkpoint(annotations={"note": "from the archive"}),
    ],
)
def test_anybody_may_bring_weights(brought: Json) -> None:
    assert refusal(brought) == ""


@pytest.mark.parametrize(
    ("claimed", "says"),
    [
        (checkpoint(MADE_BY), "set spec.evaluation"),
        (checkpoint(annotations=WEIGHED), "weighed as spec.evaluation says"),
        (checkpoint(labels={OWNER_LABEL: "verifiedrljob.solver-rl"}), "Leave it as it is"),
        (OURS, "Leave out spec.job, the annotation assay.dev/evaluation and the label"),
    ],
    ids=["spec.job", "annotation", "label", "all of them"],
)
def test_nobody_says_that_a_training_run_made_and_weighed_what_they_bring(
    claimed: Json, says: str
) -> None:
    assert says in refusal(claimed)


def changed(**metadata: Any) -> Json:
    return {**OURS, "metadata": {**OURS["metadata"], **metadata}}


@pytest.mark.parametrize(
    "after",
    [
        OURS,
        changed(annotations={**WEIGHED, "note": "good"}),
        changed(labels={**OURS["metadata"]["labels"], "a": "c"}),
        changed(ownerReferences=[]),
    ],
)
def test_all_else_of_a_jobs_checkpoint_may_be_noted(after: Json) -> None:
    assert refusal(after, OURS) == ""


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (changed(annotations={EVALUATION_ANNOTATION: "{}"}), EVALUATION_ANNOTATION),
        (changed(annotations={"note": "good"}), EVALUATION_ANNOTATION),
        ({**OURS, "metadata": {"name": "mine", "labels": OURS["metadata"]["labels"]}}, "weighed"),
        (changed(labels={OWNER_LABEL: "verifiedrljob.other"}), OWNER_LABEL),
        (changed(labels={"a": "b"}), OWNER_LABEL),
    ],
    ids=["other score", "no score", "no annotations", "other job", "no job"],
)
def test_what_the_operator_wrote_into_it_stays(after: Json, says: str) -> None:
    assert says in refusal(after, OURS)


def test_weights_that_somebody_brought_are_not_given_a_score_later() -> None:
    assert "only the operator sets" in refusal(checkpoint(annotations=WEIGHED), checkpoint())


def test_no_status_is_anybody_elses_to_write() -> None:
    spec = policies()["status"]
    (rule,) = spec["matchConstraints"]["resourceRules"]
    acting = {f"{kind.plural}/status" for kind in KINDS if "status" in kind.parts}
    assert set(rule["resources"]) == acting
    (validation,) = spec["validations"]
    assert _ENVIRONMENT.compile(validation["expression"]).eval(data={}).plain_value() is False
