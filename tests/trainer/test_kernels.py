"""Where the learner takes assay_kernels, where it does not, and what is said where it cannot."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from assay_kernels.registry import obstacle_of
from assay_trainer import kernels
from assay_trainer.kernels import KernelError, way
from assay_trainer.learner import Learner
from assay_trainer.processes import World
from assay_trainer.settings import Trainer
from tests.trainer.models import batch, job, policy

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def not_interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As everywhere but in the kernels' own tests."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    obstacle_of.cache_clear()
    yield
    obstacle_of.cache_clear()


def settings(**fields: Any) -> Trainer:
    return Trainer(steps=1, **fields)


@pytest.fixture
def runs_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which all kernels can run."""
    monkeypatch.setattr(kernels, "obstacles", lambda wanted, device: {})


@pytest.mark.usefixtures("runs_on_gpus")
def test_a_gpu_on_which_kernels_can_run_runs_them_unless_the_job_says_stock() -> None:
    assert way(settings(), GPU) == "fused"
    assert way(settings(kernels="fused"), GPU) == "fused"
    assert way(settings(kernels="stock"), GPU) == "stock"
    assert way(settings(deterministic=True), GPU) == "exact"


@pytest.mark.usefixtures("runs_on_gpus")
def test_a_cpu_never_runs_them_unasked() -> None:
    assert way(settings(), CPU) == "stock"


def test_where_kernels_cannot_run_auto_goes_on_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "obstacles", lambda wanted, device: {"matmul": "too old"})
    assert way(settings(), GPU) == "stock"


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        (
            {"kernels": "fused"},
            r"trainer\.kernels: fused, but kernels cannot run on cpu \(linear_logprob: tensors are "
            r"on the CPU; .*\): set it to auto or stock",
        ),
        (
            {"deterministic": True},
            r"trainer\.deterministic: true, but kernels cannot run on cpu \(.*matmul: tensors are "
            r"on the CPU.*\): set it to false",
        ),
        (
            {"deterministic": True, "kernels": "stock"},
            r"trainer\.deterministic: true is made of kernels, but trainer\.kernels is stock",
        ),
    ],
    ids=["fused", "deterministic", "both"],
)
def test_what_was_asked_for_and_cannot_be_is_refused_before_anything_is_loaded(
    fields: dict[str, Any], what: str
) -> None:
    asked = {f"trainer__{name}": value for name, value in fields.items()}
    with pytest.raises(KernelError, match=what):
        Learner.load(job(**asked), World())


def test_a_deterministic_gpu_computes_in_bf16() -> None:
    with pytest.raises(KernelError, match=r"needs trainer\.precision bf16 on a GPU"):
        way(settings(deterministic=True, precision="fp32"), GPU)


def test_an_image_without_the_kernels_is_an_obstacle_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert way(settings(), GPU) == "stock"
    with pytest.raises(KernelError, match="assay_kernels is not installed"):
        way(settings(kernels="fused"), GPU)


def test_on_a_cpu_steps_and_metrics_are_those_of_stock_to_the_last_bit() -> None:
    told = []
    for kind in ("auto", "stock"):
        made = Learner(job(trainer__kernels=kind), World(), policy())
        numbers = made.learn(batch())
        del numbers["seconds/train"]
        told.append((numbers, made.state()))
    (one, state), (other, again) = told
    assert one == other
    assert not any(name.startswith("kernels/") for name in one)
    assert all(torch.equal(state[name], again[name]) for name in state)
