"""One arm of the learner benchmark, in a process of its own.

    python -m benchmarks.learner_arms make FOLDER SHAPE            writes the random model
    python -m benchmarks.learner_arms ARM FOLDER SHAPE SETTING     serves commands

Each arm has its own process, since Liger changes transformers' modules for everybody in the
process, and since only then the memory that torch counts is the arm's. So each imports only its own
libraries. Commands are lines of JSON on standard input, answers likewise on standard output:

    {"do": "load", "setting": {...}}    takes another batch, with the same number of sequences
    {"do": "limit", "bytes": n}         no more memory than this from now on
    {"do": "step"}                      one update -> {"seconds", "peak", "reserved", "resting",
                                        "loss", "norm", "full"}
    {"do": "end"}

SHAPE is `qwen3-0.6b` or `tiny`; without a GPU everything runs on the CPU in fp32.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.learner_batch import QWEN3_06B, TINY, Recorded, Setting, record

SHAPES: Mapping[str, Mapping[str, Any]] = {"qwen3-0.6b": QWEN3_06B, "tiny": TINY}
OURS: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "ours-stock": {"kernels": "stock"},
    "ours-512": {"logProbChunk": 512},
    "ours-exact": {"deterministic": True},
}
"""Our arms, and what of the job's `trainer` is not the default."""
ON_GPU = torch.cuda.is_available()


class Ended(Exception):
    """There are no more commands."""


class Commands:
    """The commands, answered one by one.

    Args:
        load: takes another batch.
        shape: the model's.
    """

    def __init__(self, load: Callable[[Recorded, Setting], None], shape: str) -> None:
        self._load = load
        self._shape = SHAPES[shape]
        # Libraries print to standard output too; from here on that is the log.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._started = 0.0
        self._resting = 0

    def until_step(self) -> None:
        """Does what is asked until an update is, and starts the clock.

        Raises:
            Ended: nothing more is asked.
        """
        while True:
            command = json.loads(sys.stdin.readline() or '{"do": "end"}')
            match command["do"]:
                case "load":
                    setting = Setting.of_json(command["setting"])
                    self._load(record(setting, self._shape), setting)
                    self.answer(loaded=setting.name)
                case "limit":
                    total = torch.cuda.get_device_properties(0).total_memory
                    torch.cuda.set_per_process_memory_fraction(command["bytes"] / total)
                    self.answer(limit=command["bytes"])
                case "step":
                    break
                case _:
                    raise Ended
        if ON_GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._resting = torch.cuda.memory_allocated()
        self._started = time.perf_counter()

    def stepped(self, loss: Any, norm: Any, full: bool) -> None:
        """Stops the clock and answers; after want of memory, gives back what is left over."""
        if ON_GPU:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._started
        memory = (
            {
                "peak": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
                "resting": self._resting,
            }
            if ON_GPU
            else {}
        )
        if full:
            gc.collect()
            torch.cuda.empty_cache()
        self.answer(
            seconds=seconds,
            loss=None if full else float(loss),
            norm=None if full else float(norm),
            full=full,
            **memory,
        )

    def answer(self, **what: Any) -> None:
        """Writes a line."""
        print(json.dumps(what), file=self._answers, flush=True)


def make(folder: Path, shape: str) -> None:
    """Writes a model with random weights, the same for the same shape."""
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    with torch.device("cuda" if ON_GPU else "cpu"):
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPES[shape], dtype="float32"))
    model.save_pretrained(folder)


def serve_trl(arm: str, folder: Path, shape: str, setting: Setting) -> None:
    """Serves commands from within TRL's loop."""
    from transformers import TrainerCallback  # noqa: PLC0415

    from benchmarks.learner_trl import trainer  # noqa: PLC0415

    class Held(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            commands.until_step()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            norm = None if made.full else made.grad_norm
            commands.stepped(made.loss, norm, made.full)

    made = trainer(
        arm,
        folder,
        sequences=setting.sequences,
        per_pass=setting.per_pass,
        on_gpu=ON_GPU,
        callback=Held(),
    )
    commands = Commands(lambda batch, _: made.load(batch), shape)
    made.load(record(setting, SHAPES[shape]))
    commands.answer(ready=arm)
    try:
        made.train()
    except Ended:
        return


def main() -> None:
    what, folder, shape, *rest = sys.argv[1:]
    if what == "make":
        make(Path(folder), shape)
        return
    setting = Setting.of_json(json.loads(rest[0]))
    if what in OURS:
        from benchmarks.learner_ours import serve  # noqa: PLC0415

        serve(Path(folder), shape, setting, OURS[what])
    else:
        serve_trl(what, Path(folder), shape, setting)


if __name__ == "__main__":
    main()
