"""Which template an engine's pod was made from, and whether it is a good one. Pure."""

from __future__ import annotations

import json

from assay_operator.inference.objects import fingerprint
from assay_operator.inference.observation import Observation, is_ready, is_terminating
from assay_operator.inference.replicas import annotation, lacks_kernels, owes_kernels
from assay_operator.plan import Json

TEMPLATE_ANNOTATION = "assay.dev/template"
"""On an engine's pod: which template it was made from, as `made_of` has it."""


def made_of(template: Json) -> str:
    """A short name for what pods of a template are."""
    return fingerprint(json.dumps(template, sort_keys=True))


def marked(template: Json) -> Json:
    """A template whose pods say that they were made from it."""
    metadata = template["metadata"]
    annotations = {**(metadata.get("annotations") or {}), TEMPLATE_ANNOTATION: made_of(template)}
    return {**template, "metadata": {**metadata, "annotations": annotations}}


def is_held(observation: Observation, template: Json, deployment: Json | None) -> bool:
    """Whether no pod shall give way to one of this very template, for its pods lack their kernels.

    The kubelet finds them ready, so that the Deployment would put more of them in the place of
    those that serve. What they said is remembered by one operator only: while a ready one has not
    told the next one, the Deployment stays as it stands.

    Args:
        observation: what is seen of the service.
        template: of the engines' pods.
        deployment: of the engines, as it stands in the cluster; None where there is none.
    """
    mark = made_of(template)
    ours = [
        pod
        for pod in observation.engines
        if annotation(pod, TEMPLATE_ANNOTATION) == mark and not is_terminating(pod)
    ]
    if any(lacks_kernels(observation, pod) for pod in ours):
        return True
    silent = any(is_ready(pod) and owes_kernels(observation, pod) for pod in ours)
    return silent and bool(deployment and deployment["spec"].get("paused"))
