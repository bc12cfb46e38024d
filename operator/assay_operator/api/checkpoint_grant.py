"""CheckpointGrant: lets services of other namespaces follow jobs of this one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from assay_operator.api.meta import ApiModel, Label

_MOST = 64


class GrantedFrom(ApiModel):
    """Who may follow."""

    namespace: Label = Field(description="The namespace of the InferenceServices.")


class CheckpointGrantSpec(ApiModel):
    """Who may follow what."""

    from_: Annotated[tuple[GrantedFrom, ...], Field(min_length=1, max_length=_MOST)] = Field(
        alias="from", description="The namespaces whose services may follow."
    )
    jobs: Annotated[tuple[Label, ...], Field(min_length=1, max_length=_MOST)] | None = Field(
        None, description="The VerifiedRLJobs of this namespace. Default: all."
    )

    def allows(self, namespace: str, job: str) -> bool:
        """Whether services of `namespace` may follow `job`."""
        named = self.jobs is None or job in self.jobs
        return named and any(granted.namespace == namespace for granted in self.from_)


class CheckpointGrant(ApiModel):
    """Lets services of other namespaces follow jobs of this one."""

    spec: CheckpointGrantSpec
