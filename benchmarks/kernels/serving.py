"""SGLang servers on one GPU for `end_to_end`: started together, asked by turns.

Several servers share the GPU's memory, each with room for the largest load, and wait without
computing while another is asked. So they are measured within minutes of each other, on one device.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.common import say
from tests.cluster.settings import REPOSITORY

START_SECONDS = 300
ADD_PLUGIN = REPOSITORY / "images/engine/add_plugin.py"
ARGUMENTS = (
    *("--host", "127.0.0.1", "--dtype", "bfloat16", "--attention-backend", "fa3"),
    *("--disable-prefill-cuda-graph", "--sleep-on-idle", "--skip-server-warmup"),
)
_LEAST = 16
"""One or two requests are over before the machine's moods even out."""


@dataclass(frozen=True)
class Load:
    """What a server is asked.

    Attributes:
        prompt: tokens of a prompt, drawn at random.
        output: tokens of an answer; all are made, whatever they are.
        vocabulary: tokens are below it.
        top_p: of the requests; 1 for none.
    """

    prompt: int
    output: int
    vocabulary: int
    top_p: float = 1.0

    def requests(self, concurrency: int) -> int:
        """How many: two full rounds of all slots, and enough for some seconds."""
        return max(2 * concurrency, _LEAST)


@dataclass(frozen=True)
class Engine:
    """One way to start SGLang.

    Attributes:
        name: of the arm.
        deterministic: SGLang's deterministic mode.
        kernels: fused or stock; with stock the plugin is not loaded at all.
    """

    name: str
    deterministic: bool
    kernels: str


@dataclass(frozen=True)
class Server:
    """A running engine."""

    engine: Engine
    process: subprocess.Popen[bytes]
    url: str
    log: Path


def command(engine: Engine, model: Path, port: int, load: Load, most: int) -> list[str]:
    """The line that starts an engine with room for `most` requests at a time."""
    return [
        *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)),
        *("--port", str(port), *ARGUMENTS, "--mem-fraction-static", "0.92"),
        *("--max-running-requests", str(most), "--cuda-graph-max-bs-decode", str(most)),
        *("--max-total-tokens", str(most * (load.prompt + load.output + 16))),
        *("--context-length", str(2 * (load.prompt + load.output))),
        *(["--enable-deterministic-inference"] if engine.deterministic else []),
        *([] if engine.deterministic else ["--sampling-backend", "pytorch"]),
    ]


def environment(engine: Engine, folder: Path) -> dict[str, str]:
    """Its environment; the plugin is on the path, and loaded where kernels are fused."""
    path = [str(folder / "plugin"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "SGLANG_PLUGINS": "assay" if engine.kernels == "fused" else "none",
        "ASSAY_KERNELS": engine.kernels,
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.contextmanager
def running(
    engines: Sequence[Engine], model: Path, folder: Path, load: Load, most: int
) -> Iterator[list[Server]]:
    """All engines at once, ready, until the block ends. Their logs lie in `folder`.

    Raises:
        RuntimeError: one did not start.
    """
    subprocess.run([sys.executable, ADD_PLUGIN, folder / "plugin"], check=True)
    servers: list[Server] = []
    try:
        for number, engine in enumerate(engines):
            port = 30_000 + 1_000 * number
            line = command(engine, model, port, load, most)
            servers.append(_start(engine, line, folder, f"http://127.0.0.1:{port}"))
        for server in servers:
            _wait(server)
        yield servers
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


def _start(engine: Engine, line: Sequence[str], folder: Path, url: str) -> Server:
    log = folder / f"{engine.name.replace(' ', '-')}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            line,
            env=environment(engine, folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(engine, process, url, log)


def _wait(server: Server) -> None:
    begun = time.monotonic()
    while time.monotonic() < begun + START_SECONDS and server.process.poll() is None:
        if asyncio.run(_ready(server.url)):
            say(f"{server.engine.name}: ready")
            return
        time.sleep(1)
    tail = server.log.read_text(errors="replace")[-3000:]
    raise RuntimeError(f"{server.engine.name} did not start:\n{tail}")


async def _ready(url: str) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/health") as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def get(url: str) -> Any:
    """The JSON at a URL."""

    async def ask() -> Any:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            answer.raise_for_status()
            return await answer.json(content_type=None)

    return asyncio.run(ask())


def tokens_a_second(url: str, load: Load, concurrency: int, seed: int) -> float:
    """Output tokens a second of a server under a load, every request answered in full.

    Raises:
        RuntimeError: a request failed, or was answered in part.
    """
    return asyncio.run(_ask(url, load, concurrency, seed))


async def _ask(url: str, load: Load, concurrency: int, seed: int) -> float:
    draw = random.Random(seed)
    slots = asyncio.Semaphore(concurrency)
    sampling: Mapping[str, Any] = {
        "temperature": 1.0,
        "top_p": load.top_p,
        "max_new_tokens": load.output,
        "ignore_eos": True,
    }
    bodies = [
        {
            "input_ids": [draw.randrange(load.vocabulary) for _ in range(load.prompt)],
            "sampling_params": {**sampling, "sampling_seed": draw.randrange(2**31)},
        }
        for _ in range(load.requests(concurrency))
    ]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def one(body: Mapping[str, Any]) -> int:
            async with slots, session.post(f"{url}/generate", json=body) as answer:
                content = await answer.json(content_type=None)
                if answer.status != 200:
                    raise RuntimeError(f"{url} answered {answer.status}: {content}")
                count: int = content["meta_info"]["completion_tokens"]
                return count

        begun = time.perf_counter()
        made = sum(await asyncio.gather(*(one(body) for body in bodies)))
        seconds = time.perf_counter() - begun
    if made != load.output * len(bodies):
        raise RuntimeError(f"{url} made {made} tokens, not {load.output * len(bodies)}")
    return made / seconds
