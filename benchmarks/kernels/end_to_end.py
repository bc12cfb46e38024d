"""Output tokens a second of whole servers on one GPU, with and without the plugin.

    python -m benchmarks.kernels.end_to_end --model DIR [--arms NAME...] [--concurrency N...]

Needs a CUDA GPU, SGLang and aiohttp, and transformers for its rows. Servers are started together
and asked by turns; transformers, which a user without SGLang would run, comes after them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import Json, Row, python_versions, quantile, say, write
from benchmarks.kernels.measure import about
from benchmarks.kernels.serving import Engine, Load, get, running, tokens_a_second

ENGINES = (
    Engine("normal", False, "stock"),
    Engine("normal, plugin", False, "fused"),
    Engine("deterministic", True, "stock"),
    Engine("deterministic, plugin", True, "fused"),
)
NORMAL, NORMAL_OURS, STRICT, STRICT_OURS = (engine.name for engine in ENGINES)
GENERATE = {"transformers, static": "static", "transformers, continuous": "continuous"}
ARMS = (*(engine.name for engine in ENGINES), *GENERATE)
CONCURRENCY = (1, 16, 64, 256)
DEAREST, LEAST_FACTOR = 0.10, 3.0
NOISE = 0.01
"""Of two servers with the same kernels: less than this between them is not a loss."""


@dataclass
class Found:
    """What was measured.

    Attributes:
        speeds: tokens a second of each run, by arm and concurrency.
        kernels: the record of active kernels of each engine with the plugin.
        failures: arms that could not run, with the reason.
    """

    speeds: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    kernels: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def note(self, arm: str, concurrency: int, speed: float) -> None:
        """Adds a run."""
        self.speeds.setdefault(arm, {}).setdefault(concurrency, []).append(speed)

    def median(self, arm: str, concurrency: int) -> float | None:
        """Of an arm's runs; None where there are none."""
        runs = self.speeds.get(arm, {}).get(concurrency)
        return statistics.median(runs) if runs else None


def rows(found: Found, concurrencies: Sequence[int]) -> list[Row]:
    """The table: speeds, and what the goals are about."""
    made = []
    for many in concurrencies:
        for arm in ARMS:
            if runs := found.speeds.get(arm, {}).get(many):
                low, high = quantile(runs, 0.2), quantile(runs, 0.8)
                value = f"{statistics.median(runs):,.0f} tokens/s (p20 {low:,.0f}, p80 {high:,.0f})"
                made.append(Row(f"{many} at a time: {arm}", value))
        made += _goals(found, many)
    return made


def _goals(found: Found, many: int) -> list[Row]:
    normal, ours = found.median(NORMAL, many), found.median(NORMAL_OURS, many)
    strict, strict_ours = found.median(STRICT, many), found.median(STRICT_OURS, many)
    goals = []
    if normal and ours:
        factor = ours / normal
        name = f"{many} at a time: normal mode, with the plugin against without"
        goals.append(Row(name, f"{factor:.3f}x", ">= 1x", factor >= 1 - NOISE))
    if normal and strict:
        goals.append(
            Row(
                f"{many} at a time: deterministic mode costs without the plugin",
                _cost(strict, normal),
            )
        )
    if normal and strict_ours:
        name = f"{many} at a time: deterministic mode costs with the plugin"
        met = 1 - strict_ours / normal < DEAREST
        goals.append(Row(name, _cost(strict_ours, normal), f"< {DEAREST:.0%}", met))
    peers = [peer for arm in GENERATE if (peer := found.median(arm, many))]
    if ours and peers:
        factor = ours / max(peers)
        name = f"{many} at a time: with the plugin against the faster of transformers"
        goals.append(Row(name, f"{factor:.1f}x", f"> {LEAST_FACTOR:.0f}x", factor > LEAST_FACTOR))
    return goals


def _cost(speed: float, normal: float) -> str:
    return f"{1 - speed / normal:.1%} of normal mode's speed"


def notes(found: Found, load: Load, apart: bool) -> list[str]:
    """What a reader must know to judge the figures."""
    how = "One server at a time." if apart else "Servers shared one GPU and were asked by turns."
    filters = "without filters" if load.top_p >= 1 else f"top-p {load.top_p}"
    said = [
        f"Random prompts of {load.prompt} tokens, answers of {load.output}, temperature 1, "
        f"{filters}; twice as many requests as are in flight, at least 16. Weights of a "
        "Qwen3-0.6B's shape, at random.",
        f"{how} FA3, CUDA graphs for decoding; normal mode samples by SGLang's PyTorch backend, "
        "which without filters is what its flashinfer backend does too.",
        "Static batches of transformers: one `generate` for all requests in flight, SDPA; "
        "continuous: `generate_batch`, paged SDPA. One run each.",
    ]
    for arm, record in found.kernels.items():
        (scheduler,) = (each for each in record["processes"] if each["role"] == "scheduler")
        ran = (f"{name} {op['fused']}" for name, op in scheduler["ops"].items() if op["fused"])
        said.append(
            f"{arm}: kernels launched from Python, captures of CUDA graphs counted once: "
            f"{', '.join(ran) or 'none'}; active: {str(record['active']).lower()}"
            f"{record['why_not'] and ', ' + record['why_not']}."
        )
    return [*said, *(f"{arm}: {why_not}" for arm, why_not in found.failures.items())]


def serve(options: argparse.Namespace, load: Load, folder: Path, found: Found) -> None:
    """Measures the servers among the arms."""
    engines = [engine for engine in ENGINES if engine.name in options.arms]
    groups = [[engine] for engine in engines] if options.apart else [engines]
    for group in filter(None, groups):
        try:
            with running(group, options.model, folder, load, max(options.concurrency)) as servers:
                for server in servers:
                    say(f"{server.engine.name}: warming up")
                    tokens_a_second(server.url, load, max(options.concurrency), 0)
                for turn in range(options.rounds):
                    first = turn % len(servers)
                    for many in options.concurrency:
                        for server in servers[first:] + servers[:first]:
                            speed = tokens_a_second(server.url, load, many, 1 + turn)
                            say(f"{server.engine.name}, {many} at a time: {speed:,.0f}")
                            found.note(server.engine.name, many, speed)
                for server in servers:
                    if server.engine.kernels == "fused":
                        record = get(f"{server.url}/assay/kernels")
                        found.kernels[server.engine.name] = record
        except RuntimeError as error:
            say(str(error))
            for engine in group:
                found.failures[engine.name] = f"did not run to the end: {str(error)[:300]}"


def generate(options: argparse.Namespace, load: Load, found: Found) -> None:
    """Measures transformers among the arms, each in a process of its own."""
    for arm, way in GENERATE.items():
        if arm not in options.arms:
            continue
        words = (options.model, way, load.prompt, load.output, *options.concurrency)
        command = [sys.executable, "-m", "benchmarks.kernels.generating", *map(str, words)]
        try:
            run = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, timeout=options.patience
            )
            for many, speed in json.loads(run.stdout.splitlines()[-1]).items():
                found.note(arm, int(many), speed)
        except (subprocess.SubprocessError, ValueError, IndexError) as error:
            say(f"{arm}: {error}")
            found.failures[arm] = f"did not run to the end: {type(error).__name__}"


def main(arguments: Sequence[str]) -> int:
    """Returns 0, or 1 where an arm did not run to the end."""
    options = _options(arguments)
    config: Mapping[str, Any] = json.loads((options.model / "config.json").read_text())
    load = Load(options.prompt, options.output, config["vocab_size"] - 8, options.top_p)
    found = Found()
    folder = options.logs or Path(tempfile.mkdtemp(prefix="end-to-end-"))
    folder.mkdir(parents=True, exist_ok=True)
    serve(options, load, folder, found)
    generate(options, load, found)
    raw: Json = {"speeds": found.speeds, "kernels": found.kernels, "failures": found.failures}
    # Folders are nobody else's.
    folders = {str(options.model): "MODEL", str(options.logs): "LOGS"}
    words = [folders.get(word, word) for word in arguments]
    name = "kernels_end_to_end" if load.top_p >= 1 else "kernels_end_to_end_top_p"
    write(
        name,
        "Servers on one GPU, with and without the plugin",
        rows(found, options.concurrency),
        notes=notes(found, load, options.apart),
        about=f"{about()}, {python_versions('sglang', 'transformers')}",
        raw=raw,
        command=f"python -m benchmarks.kernels.end_to_end {' '.join(words)}",
    )
    return 1 if found.failures else 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.end_to_end", description=__doc__
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of a Qwen3 model")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--concurrency", nargs="+", type=int, default=CONCURRENCY)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--apart", action="store_true", help="one server at a time")
    parser.add_argument("--patience", type=float, default=120, help="seconds for transformers")
    parser.add_argument("--logs", type=Path, help="folder of the servers' logs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
