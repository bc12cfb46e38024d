"""How long new weights take from one GPU to an engine's GPU, by NCCL, on one host.

    python -m benchmarks.broadcast [--from cuda:0] [--to cuda:1] [--rounds 20]

The weights have the shapes of Qwen3-0.6B, in bf16, random. They begin and end where they do in
training: on the CPU, as the learner gathers them, and in a process of its own that takes them as
SGLang does (tests/trainer/receiver.py), which reports the version. With `cpu` on both sides it runs
over gloo, and only prints what it found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import torch

from assay_trainer.broadcast import BroadcastTransfer
from assay_trainer.engines import Engines
from assay_trainer.settings import Rollout
from benchmarks.common import Row, python_versions, write

REPOSITORY = Path(__file__).parents[1]
VOCABULARY, WIDTH, LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD = 151_936, 1024, 28, 3072, 16, 8, 128
WARM_UPS = 3


class Qwen3:
    """Random weights in the shapes of Qwen3-0.6B (tied embeddings)."""

    def __init__(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
        for layer in range(LAYERS):
            at = f"model.layers.{layer}"
            shapes |= {
                f"{at}.self_attn.q_proj.weight": (HEADS * HEAD, WIDTH),
                f"{at}.self_attn.k_proj.weight": (KV_HEADS * HEAD, WIDTH),
                f"{at}.self_attn.v_proj.weight": (KV_HEADS * HEAD, WIDTH),
                f"{at}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
                f"{at}.mlp.gate_proj.weight": (HIDDEN, WIDTH),
                f"{at}.mlp.up_proj.weight": (HIDDEN, WIDTH),
                f"{at}.mlp.down_proj.weight": (WIDTH, HIDDEN),
            }
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{at}.{norm}.weight"] = (WIDTH,)
            for norm in ("q_norm", "k_norm"):
                shapes[f"{at}.self_attn.{norm}.weight"] = (HEAD,)
        shapes["model.norm.weight"] = (WIDTH,)
        self.held = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}

    @property
    def size(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.held.values())

    def weights(self) -> Mapping[str, torch.Tensor]:
        return self.held

    def write(self, folder: Path) -> None:
        raise AssertionError("this is about the broadcast")


async def measured(url: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds of each update, and whether the last one arrived as it was sent."""
    settings = Rollout.model_validate({"engines": [url], "requestSeconds": 120})
    source, seconds = Qwen3(), []
    async with Engines(settings, VOCABULARY) as engines:
        await engines.start()
        with tempfile.TemporaryDirectory() as folder:
            transfer = BroadcastTransfer(engines, Path(folder), device=device, seconds=120)
            for step in range(WARM_UPS + rounds):
                pushed = await transfer.push(source, f"1.{step}")
                if pushed.fallback or pushed.loaded.failed:
                    raise SystemExit(f"update {step} failed: {pushed}")
                seconds.append(pushed.loaded.seconds)
            async with httpx.AsyncClient(timeout=60) as client:
                sums = (await client.get(f"{url}/sums")).json()
            await transfer.close()
    wanted = {name: tensor.double().sum().item() for name, tensor in source.held.items()}
    timed = seconds[WARM_UPS:]
    middle = statistics.median(timed)
    return {
        "bytes": source.size,
        "arrived": all(abs(sums[name] - wanted[name]) < 1e-3 for name in wanted),
        "first": seconds[0],
        "median": middle,
        "fastest": min(timed),
        "slowest": max(timed),
        "GB/s": source.size / middle / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--from", dest="source", default="cuda:0")
    parser.add_argument("--to", dest="target", default="cuda:1")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.trainer.receiver", options.target],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as receiver:
        assert receiver.stdout
        try:
            url = receiver.stdout.readline().strip()
            found = asyncio.run(measured(url, torch.device(options.source), options.rounds))
        finally:
            receiver.kill()
    figures = {"from": options.source, "to": options.target, "rounds": options.rounds, **found}
    print(json.dumps(figures))
    if "cpu" not in {options.source, options.target}:
        report(figures, f"{gpus()}. {python_versions('torch')}")


def gpus() -> str:
    """The GPUs and their driver."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    name, driver = told[0].split(", ")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return f"{len(told)} {name}, driver {driver}, NCCL {nccl}"


def report(figures: Mapping[str, Any], about: str) -> None:
    """Writes the table."""
    words = f"{figures['from']} to {figures['to']}, {figures['bytes'] / 1e9:.2f} GB"
    value = (
        f"{figures['median']:.2f} s ({figures['fastest']:.2f} to {figures['slowest']:.2f}, "
        f"{figures['rounds']} updates); {figures['GB/s']:.1f} GB/s"
    )
    arrived = "yes" if figures["arrived"] else "no"
    rows = [
        Row(f"{words}: one update", value),
        Row(f"{words}: the first one, which forms the group", f"{figures['first']:.2f} s"),
        Row("sums of all tensors as they were sent", arrived, "yes", figures["arrived"]),
    ]
    notes = [
        "Weights in the shapes of Qwen3-0.6B, bf16, random. An update: tensors on the trainer's "
        "CPU put together in buckets of 512 MiB, copied to its GPU, broadcast by NCCL, received "
        "by another process on the other GPU, which then reports the new version. Gathering them "
        "from the learner is not in it.",
        f"Median, with the fastest and slowest, after {WARM_UPS} warm-ups. The receiver takes its "
        "orders over HTTP as SGLang does (tests/trainer/receiver.py); it is no SGLang and copies "
        "nothing into a model.",
    ]
    if os.environ.get("NCCL_NVLS_ENABLE") == "0":
        notes.append("NVLink multicast was off (NCCL_NVLS_ENABLE=0).")
    write(
        "broadcast",
        "New weights from GPU to GPU",
        rows,
        notes=notes,
        about=about,
        raw=dict(figures),
        command="python -m benchmarks.broadcast",
    )


if __name__ == "__main__":
    main()
