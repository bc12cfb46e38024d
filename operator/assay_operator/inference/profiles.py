"""Engine profiles: SGLang's arguments for a model family, an accelerator and a tuning.

The table is data (profiles.yaml, beside this file); here are its schema, its loader and the one
question that the planner asks of it: `resolve`. Pure, and without SGLang.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from assay_operator.api.engine import (
    Accelerator,
    Engine,
    Kernels,
    Parallelism,
    Profile,
    Tuning,
)
from assay_operator.autoscaling.model import Prior
from assay_operator.inference.kernels import KERNELS_VARIABLE

_Key = tuple[str, str, str]


class UnsupportedProfile(ValueError):
    """There is no such profile, or it does not go with what else the spec asks for."""


@dataclass(frozen=True)
class EngineProfile:
    """All that a profile says about one engine pod.

    Attributes:
        args: SGLang's arguments, parallelism included.
        env: environment of the engine's container.
        parallelism: how the engine is spread: the spec's wish, or else the row's default.
        kernels: which kernels it runs: the spec's wish, or else the accelerator's default.
        resource: the name of the GPU resource, or None on CPUs.
        gpus: how many of them one engine takes.
        products: the GPU products (node label nvidia.com/gpu.product) that do; empty: any.
        requests: CPU and memory that the engine's container requests.
        shm: size of /dev/shm, over which the engine's processes exchange data.
        startup_seconds: how long an engine may take until it answers for the first time.
        expected: what autoscaling assumes of it until it was measured.
    """

    args: tuple[str, ...]
    env: Mapping[str, str]
    parallelism: Parallelism
    kernels: Kernels
    resource: str | None
    gpus: int
    products: tuple[str, ...]
    requests: Mapping[str, str]
    shm: str
    startup_seconds: int
    expected: Prior


class _TableModel(BaseModel):
    """A part of the table. A misspelt key is an error, not an argument that quietly is not set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Requests(_TableModel):
    """What is requested for each GPU, or for the whole engine on CPUs."""

    cpu: int
    memoryGi: int  # noqa: N815 - as it stands in the table


class _Expected(_TableModel):
    """What is assumed of an engine: milliseconds, and the seconds of a start."""

    itl: float = Field(gt=0)
    itlPerRunning: float = Field(ge=0)  # noqa: N815
    prompt: float = Field(gt=0)
    promptToken: float = Field(ge=0)  # noqa: N815
    startup: float = Field(gt=0)

    def prior(self) -> Prior:
        return Prior(
            itl_s=self.itl / 1000,
            itl_per_running_s=self.itlPerRunning / 1000,
            first_token_s=self.prompt / 1000,
            prompt_token_s=self.promptToken / 1000,
            startup_s=self.startup,
        )


class _Accelerator(_TableModel):
    """What all engines on one kind of accelerator share."""

    resource: str | None
    gpusPerNode: int  # noqa: N815
    products: tuple[str, ...]
    kernels: Kernels
    deterministic: bool
    args: tuple[str, ...]
    env: dict[str, str]
    requests: _Requests
    shm: str
    startupSeconds: int  # noqa: N815
    expected: _Expected


class _Row(_TableModel):
    """The arguments of one family on some accelerators and tunings, with their reason."""

    accelerators: tuple[Accelerator, ...] = Field(min_length=1)
    tunings: tuple[Tuning, ...] = Field(min_length=1)
    reason: str = Field(min_length=1)
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    parallelism: Parallelism = Parallelism()
    attentionDataParallel: bool = False  # noqa: N815
    startupSeconds: int | None = None  # noqa: N815


class _Family(_TableModel):
    """The rows of one model family, and the arguments that they share."""

    rows: tuple[_Row, ...] = Field(min_length=1)
    args: tuple[str, ...] = ()
    deterministic: bool = True

    @model_validator(mode="after")
    def _rows_do_not_overlap(self) -> _Family:
        pairs = [pair for row in self.rows for pair in _pairs(row)]
        if len(pairs) != len(set(pairs)):
            raise ValueError("two rows stand for the same accelerator and tuning")
        return self


class _Table(_TableModel):
    """The whole table. It has exactly the names that the API offers."""

    env: dict[str, str]
    accelerators: dict[Accelerator, _Accelerator]
    families: dict[Profile, _Family]


def _pairs(row: _Row) -> Iterator[tuple[str, str]]:
    """The accelerators and tunings that a row stands for."""
    return ((accelerator, tuning) for accelerator in row.accelerators for tuning in row.tunings)


@cache
def _table() -> _Table:
    text = resources.files(__package__).joinpath("profiles.yaml").read_text(encoding="utf-8")
    content: Any = yaml.safe_load(text)
    return _Table.model_validate(content)


@cache
def _rows() -> Mapping[_Key, _Row]:
    return {
        (name, accelerator, tuning): row
        for name, family in _table().families.items()
        for row in family.rows
        for accelerator, tuning in _pairs(row)
    }


def families() -> tuple[str, ...]:
    """The model families, that is the values of spec.engine.profile."""
    return tuple(_table().families)


def accelerators() -> tuple[str, ...]:
    """The accelerators, that is the values of spec.engine.accelerator."""
    return tuple(_table().accelerators)


def rows() -> tuple[_Key, ...]:
    """All family, accelerator and tuning that `resolve` knows."""
    return tuple(_rows())


def profile_of(engine: Engine) -> EngineProfile:
    """The profile of an engine as a spec asks for it.

    Raises:
        UnsupportedProfile: see `resolve`.
    """
    return resolve(
        engine.profile,
        engine.accelerator,
        engine.tuning,
        engine.parallelism,
        kernels=engine.kernels,
        deterministic=engine.deterministic,
    )


def resolve(
    profile: str,
    accelerator: str,
    tuning: str,
    parallelism: Parallelism | None,
    *,
    kernels: Kernels | None = None,
    deterministic: bool = False,
) -> EngineProfile:
    """Look a profile up and render it for one engine.

    Args:
        profile: spec.engine.profile.
        accelerator: spec.engine.accelerator.
        tuning: spec.engine.tuning.
        parallelism: spec.engine.parallelism; None for the row's default.
        kernels: spec.engine.kernels; None for the accelerator's default.
        deterministic: spec.engine.deterministic.

    Raises:
        UnsupportedProfile: there is no such row, or parallelism or deterministic do not go with
            it; the message names what there is.
    """
    row = _rows().get((profile, accelerator, tuning))
    if row is None:
        raise UnsupportedProfile(_not_there(profile, accelerator, tuning))
    table = _table()
    hardware = table.accelerators[accelerator]  # type: ignore[index]  # the row has it
    spread = parallelism or row.parallelism
    _check_parallelism(spread, row, hardware, accelerator)
    family = table.families[profile]  # type: ignore[index]
    if deterministic:
        _check_deterministic(family, hardware, profile, accelerator)
    chosen = kernels or hardware.kernels
    gpus = _processes(spread, row) if hardware.resource else 0
    return EngineProfile(
        args=(
            *hardware.args,
            *family.args,
            *row.args,
            *_parallel_arguments(spread, row),
            *(["--enable-deterministic-inference"] if deterministic else []),
        ),
        env=MappingProxyType({**table.env, **hardware.env, **row.env, KERNELS_VARIABLE: chosen}),
        parallelism=spread,
        kernels=chosen,
        resource=hardware.resource,
        gpus=gpus,
        products=hardware.products,
        requests=_requests(hardware.requests, max(gpus, 1)),
        shm=hardware.shm,
        startup_seconds=row.startupSeconds or hardware.startupSeconds,
        expected=hardware.expected.prior(),
    )


def _processes(spread: Parallelism, row: _Row) -> int:
    """How many devices the engine takes: data ranks need their own unless they share."""
    return spread.tensor if row.attentionDataParallel else spread.tensor * spread.data


def _requests(one: _Requests, times: int) -> Mapping[str, str]:
    return MappingProxyType({"cpu": str(one.cpu * times), "memory": f"{one.memoryGi * times}Gi"})


def _parallel_arguments(spread: Parallelism, row: _Row) -> Iterator[str]:
    """SGLang's parallelism flags, where they differ from its default of 1."""
    data_flag = "--attn-dp-size" if row.attentionDataParallel else "--dp-size"
    sizes = (
        ("--tp-size", spread.tensor),
        (data_flag, spread.data),
        ("--ep-size", spread.expert),
    )
    return (f"{flag}={size}" for flag, size in sizes if size != 1)


def _check_deterministic(
    family: _Family, hardware: _Accelerator, profile: str, accelerator: str
) -> None:
    """Refuse a mode that SGLang would refuse only when the pod runs."""
    where, remedy = f"for {profile}", "spec.engine.profile"
    if not hardware.deterministic:
        where, remedy = f"on {accelerator}", "spec.engine.accelerator"
    elif family.deterministic:
        return
    raise UnsupportedProfile(
        f"spec.engine.deterministic: SGLang has no deterministic mode {where}; take it away, or "
        f"choose another {remedy}."
    )


def _check_parallelism(
    spread: Parallelism, row: _Row, hardware: _Accelerator, accelerator: str
) -> None:
    """Refuse what SGLang would refuse only when the pod runs, or what no node can hold."""
    if hardware.resource is None and spread != Parallelism():
        raise UnsupportedProfile(
            f"spec.engine.parallelism: an engine on {accelerator} is one process, so tensor, data "
            "and expert must be 1; use spec.replicas for more throughput."
        )
    if spread.tensor % spread.expert:
        raise UnsupportedProfile(
            f"spec.engine.parallelism: expert ({spread.expert}) must divide tensor "
            f"({spread.tensor}), because the experts are spread over the GPUs of that group."
        )
    if row.attentionDataParallel and spread.tensor % spread.data:
        raise UnsupportedProfile(
            f"spec.engine.parallelism: this profile shares the GPUs of the tensor group among "
            f"its data ranks, so data ({spread.data}) must divide tensor ({spread.tensor})."
        )
    needed = _processes(spread, row)
    if hardware.resource and needed > hardware.gpusPerNode:
        raise UnsupportedProfile(
            f"spec.engine.parallelism asks for {needed} GPUs in one engine, but a node with "
            f"{accelerator} has {hardware.gpusPerNode}; use spec.replicas for more throughput."
        )


def _not_there(profile: str, accelerator: str, tuning: str) -> str:
    """Say that there is no such row, and what there is on either side."""
    on_accelerator = _offered(0, lambda key: key[1:] == (accelerator, tuning))
    of_family = _offered(1, lambda key: key[0] == profile and key[2] == tuning)
    return (
        f"There is no engine profile {profile} for {accelerator} tuned for {tuning}. "
        f"{accelerator} has: {on_accelerator}. {profile} runs on: {of_family}. Change "
        "spec.engine.profile or spec.engine.accelerator; profile auto leaves the choice of "
        "arguments to SGLang."
    )


def _offered(column: int, wanted: Any) -> str:
    """The distinct names in one column of the rows that are wanted."""
    return ", ".join(dict.fromkeys(key[column] for key in _rows() if wanted(key))) or "nothing"
