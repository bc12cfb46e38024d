"""Rollout and weights against a real SGLang server on a CPU."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

from assay_trainer.batch import Completion
from assay_trainer.engine import Refused
from assay_trainer.engines import Engines
from assay_trainer.settings import Rollout
from tests.engine.conftest import EngineEnv
from tests.engine.servers import Server, free_port, running, start
from tests.trainer.conftest import find_torch

find_torch()

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from assay_trainer.broadcast import BroadcastTransfer  # noqa: E402
from assay_trainer.weights import DiskTransfer, Transfer  # noqa: E402


class Trained:
    """Weights that differ from the served ones, as after some training.

    Args:
        base: the folder of the served model.
        far: how much they differ.
    """

    def __init__(self, base: Path, far: float = 0.0) -> None:
        self.base, self.far = base, far

    def weights(self) -> Mapping[str, torch.Tensor]:
        torch.manual_seed(1)
        served = load_file(self.base / "model.safetensors")
        return {
            name: (tensor.float() + self.far * torch.randn(tensor.shape)).contiguous()
            for name, tensor in served.items()
        }

    def write(self, folder: Path) -> None:
        save_file(dict(self.weights()), folder / "model.safetensors", {"format": "pt"})
        for path in self.base.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())

    @cached_property
    def model(self) -> Any:
        """The same in transformers, fp32."""
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        model.load_state_dict(dict(self.weights()), strict=False)
        return model.eval()

    def farthest(self, prompt: list[int], drawn: list[Completion], temperature: float) -> float:
        """The largest difference from log_softmax(logits / temperature) of transformers."""
        found = 0.0
        for one in drawn:
            ids = torch.tensor([*prompt, *one.ids])
            with torch.no_grad():
                logits = self.model(ids[None]).logits[0, len(prompt) - 1 : -1]
            log_probs = (logits / temperature).log_softmax(-1)
            wanted = log_probs.gather(1, ids[len(prompt) :, None])[:, 0]
            found = max(found, (wanted - torch.tensor(one.log_probs)).abs().max().item())
        return found


@pytest.fixture(scope="module")
def server(
    engine_env: EngineEnv, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with running(engine_env, model, tmp_path_factory.mktemp("engine"), free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def prompt(model: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    question = [{"role": "user", "content": "2 + 3 ="}]
    ids: list[int] = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_dict=False
    )
    return ids


@asynccontextmanager
async def engines_of(server: Server, model: Path, **more: Any) -> AsyncIterator[Engines]:
    settings = Rollout.model_validate({"engines": [server.url], "requestSeconds": 60, **more})
    vocabulary = json.loads((model / "config.json").read_bytes())["vocab_size"]
    async with Engines(settings, vocabulary) as engines:
        await engines.start()
        yield engines


def next_version() -> str:
    """Later than all before it, as an attempt's is."""
    return f"{time.monotonic_ns()}.1"


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
async def test_log_probs_are_those_of_the_distribution_that_was_drawn_from(
    server: Server, model: Path, prompt: list[int], temperature: float
) -> None:
    source = Trained(model)
    async with engines_of(server, model) as engines:
        drawn = await engines.generate(prompt, n=8, max_tokens=24, temperature=temperature)
    assert source.farthest(prompt, drawn, temperature) < 2e-5


async def test_a_group_of_sixteen_comes_as_sixteen_completions_with_their_end(
    server: Server, model: Path, prompt: list[int]
) -> None:
    end = AutoTokenizer.from_pretrained(model).eos_token_id
    async with engines_of(server, model) as engines:
        drawn = await engines.generate(prompt, n=16, max_tokens=24, temperature=1.0)
    assert len(drawn) == 16
    stopped = [one for one in drawn if one.finish == "stop"]
    assert stopped and all(one.ids[-1] == end for one in stopped)


async def test_greedy_and_drawn_completions_can_be_asked_for_at_the_same_time(
    server: Server, model: Path, prompt: list[int]
) -> None:
    source = Trained(model)
    async with engines_of(server, model) as engines:
        greedy, *drawn = await asyncio.gather(
            engines.generate(prompt, n=1, max_tokens=8, temperature=0),
            *(engines.generate(prompt, n=8, max_tokens=8, temperature=1.5) for _ in range(4)),
        )
    assert AutoTokenizer.from_pretrained(model).decode(greedy[0].ids[:-1]).strip() == "5"
    assert source.farthest(prompt, greedy, 1.0) < 2e-5
    for group in drawn:
        assert source.farthest(prompt, group, 1.5) < 2e-5


@pytest.mark.parametrize("kind", ["disk", "broadcast"])
async def test_new_weights_are_drawn_with_at_once(
    server: Server, model: Path, prompt: list[int], tmp_path: Path, kind: str
) -> None:
    async with engines_of(server, model) as engines:
        transfer: Transfer = DiskTransfer(engines, tmp_path)
        if kind == "broadcast":
            device = torch.device("cpu")
            # Several buckets, and the group is used twice.
            transfer = BroadcastTransfer(
                engines, tmp_path, device=device, seconds=30, bucket_bytes=4 << 20
            )
        try:
            for far in (0.02, 0.05):
                source = Trained(model, far)
                version = next_version()
                pushed = await transfer.push(source, version)
                assert (pushed.loaded.failed, pushed.fallback) == ({}, "")
                drawn = await engines.generate(prompt, n=8, max_tokens=16, temperature=1.0)
                assert {v for one in drawn for v in one.versions} == {version}
                assert source.farthest(prompt, drawn, 1.0) < 2e-5
                assert Trained(model).farthest(prompt, drawn, 1.0) > 1e-2
            assert (tmp_path / version).exists() == (kind == "disk")
        finally:
            await DiskTransfer(engines, tmp_path).push(Trained(model), next_version())
            await transfer.close()


async def test_a_broadcast_that_a_killed_trainer_left_open_is_ended_and_files_are_read_instead(
    server: Server, model: Path, prompt: list[int], tmp_path: Path
) -> None:
    async with engines_of(server, model) as engines:
        transfer = BroadcastTransfer(engines, tmp_path, device=torch.device("cpu"), seconds=30)
        async with httpx.AsyncClient(timeout=30) as client:
            opened = await client.post(f"{server.url}/begin_weight_update", json={})
            assert opened.status_code == 200
        source = Trained(model, 0.02)
        try:
            pushed = await transfer.push(source, next_version())
            assert "a weight-update session is already open" in pushed.fallback
            for _ in range(2):
                drawn = await engines.generate(prompt, n=4, max_tokens=16, temperature=1.0)
                assert source.farthest(prompt, drawn, 1.0) < 2e-5
                pushed = await transfer.push(source, next_version())
                assert pushed.fallback == ""
        finally:
            await transfer.push(Trained(model), next_version())
            await transfer.close()


async def test_a_prompt_that_is_too_long_is_refused_and_the_engine_goes_on(
    server: Server, model: Path, prompt: list[int]
) -> None:
    async with engines_of(server, model) as engines:
        with pytest.raises(Refused, match="longer than the model's context length"):
            await engines.generate(prompt * 400, n=2, max_tokens=4, temperature=1.0)
        with pytest.raises(Refused, match="exceeds the model's maximum context length"):
            await engines.generate(prompt, n=2, max_tokens=4096, temperature=1.0)
        assert len(await engines.generate(prompt, n=2, max_tokens=4, temperature=1.0)) == 2


async def test_an_engine_that_is_killed_comes_back_with_the_current_weights_before_a_prompt(
    engine_env: EngineEnv, server: Server, model: Path, prompt: list[int], tmp_path: Path
) -> None:
    """The last one: it ends the module's server."""
    source = Trained(model, 0.02)
    async with engines_of(server, model) as engines:
        version = next_version()
        await DiskTransfer(engines, tmp_path).push(source, version)
        # At such a temperature hardly one ends by itself, so it is killed in the middle.
        drawing = asyncio.create_task(
            engines.generate(prompt, n=8, max_tokens=500, temperature=10.0)
        )
        await asyncio.sleep(1)
        assert not drawing.done()
        server.kill()
        again = await asyncio.to_thread(
            start, engine_env, model, server.log.parent, httpx.URL(server.url).port or 0
        )
        try:
            drawn = await drawing
        finally:
            again.kill()
    assert {v for one in drawn for v in one.versions} == {version}
    assert source.farthest(prompt, drawn, 10.0) < 2e-5
    # tests/trainer sees that nothing else was drawn; here SGLang's own warm-up is in the log, too.
    log = server.log.read_text()
    assert log.rindex("Start update_weights") < log.rindex("POST /generate")
