"""The names of a VerifiedRLJob's children, and the labels by which its pods are found."""

from __future__ import annotations

from dataclasses import dataclass

from assay_operator.inference.objects import Identity
from assay_operator.plan import MANAGED_BY, MANAGED_BY_LABEL, OWNER_LABEL


@dataclass(frozen=True)
class JobIdentity(Identity):
    """The names of a job and its children.

    A service may have the same name. So the labels by which pods are found are others: no name of a
    service has a dot.
    """

    @property
    def owner(self) -> str:
        return f"verifiedrljob.{self.name}"

    @property
    def pointer(self) -> str:
        """The engines' pointer is in the ConfigMap of the job file."""
        return self.job

    @property
    def job(self) -> str:
        return f"{self.name}-job"

    @property
    def pins(self) -> str:
        return f"{self.name}-pins"

    @property
    def engines(self) -> str:
        return f"{self.name}-engines"

    @property
    def trainer(self) -> str:
        return f"{self.name}-trainer"

    def gang(self, generation: int) -> str:
        return f"{self.name}-trainer-{generation}"

    def selector(self, component: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/instance": self.owner,
            "app.kubernetes.io/component": component,
            MANAGED_BY_LABEL: MANAGED_BY,
        }

    def labels(self, component: str) -> dict[str, str]:
        return {
            **self.selector(component),
            "app.kubernetes.io/part-of": "assay",
            OWNER_LABEL: self.owner,
        }
