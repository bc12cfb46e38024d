"""`assay-train run` against a real SGLang server: the small task's job on two architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.local_engine import LocalEngine, local_engine
from examples.train_demo import ENGINE_ARGUMENTS, FAMILIES, SOURCES, Demo
from tests.engine.conftest import EngineEnv
from tests.trainer.conftest import find_torch

find_torch()

from assay_trainer import cli, metrics  # noqa: E402
from assay_trainer.inventory import verify  # noqa: E402

STEPS = 3
MISMATCH = 1e-5
QUICKLY = "import make_task; make_task.START = 0.01; make_task.main()"
"""The task with a shorter warm-up: how much it learns is for benchmarks.training."""
QUESTIONS = ("sort 41 7 30 12 49 8", "sort 3 48 20 9 16 33")


def make_task(engine_env: EngineEnv, out: Path, family: str) -> None:
    made = engine_env.run(
        ["-c", QUICKLY, "--out", out, "--seed", "1", "--family", family],
        PYTHONPATH=f"{engine_env.folder}:{SOURCES}",
    )
    assert made.returncode == 0, made.stderr


def write_job(demo: Demo, engine: LocalEngine) -> None:
    job = demo.job([engine.url])
    job["trainer"]["promptsPerStep"] = 16
    job["evaluation"]["samples"] = 0
    demo.job_file.write_text(json.dumps(job))


def load(engine: LocalEngine, folder: Path, version: str) -> None:
    body = {"model_path": str(folder), "weight_version": version, "flush_cache": True}
    answer = httpx.post(f"{engine.url}/update_weights_from_disk", json=body, timeout=60)
    assert answer.json()["success"], answer.text


def greedy(engine: LocalEngine) -> list[tuple[str, list[float]]]:
    """Answers, and how sure the engine was of their tokens."""
    found = []
    for question in QUESTIONS:
        body: dict[str, Any] = {
            "text": f"<|user|>{question}<|end|><|assistant|>",
            "sampling_params": {"temperature": 0, "max_new_tokens": 12},
            "return_logprob": True,
        }
        answer = httpx.post(f"{engine.url}/generate", json=body, timeout=60).json()
        log_probs = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
        found.append((answer["text"], log_probs))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_job_trains_another_architecture_and_its_checkpoint_is_served_as_it_is(
    engine_env: EngineEnv, tmp_path: Path, family: str
) -> None:
    demo = Demo(tmp_path, family, steps=STEPS)
    make_task(engine_env, tmp_path / "task", family)
    base = tmp_path / "task" / "model"
    engine_folder = tmp_path / "engine"
    with local_engine(engine_env.folder, base, engine_folder, *ENGINE_ARGUMENTS) as engine:
        engine.wait(lambda words: None)
        write_job(demo, engine)
        assert cli.main(["run", str(demo.job_file)]) == 0
        lines = metrics.read(demo.run / "metrics.jsonl")
        trained = lines[1:]
        assert [line["step"] for line in lines] == [0, 1, 2, 3]
        assert max(line["mismatch/mean"] for line in trained) <= MISMATCH
        assert "evaluation/score" in lines[0] and "evaluation/score" in lines[-1]
        checkpoint = demo.run / "checkpoints" / f"step-{STEPS:06d}"
        assert verify(checkpoint) == []
        pushed = greedy(engine)
        load(engine, base, "base")
        assert greedy(engine) != pushed
        load(engine, checkpoint, "checkpoint")
        assert greedy(engine) == pushed
