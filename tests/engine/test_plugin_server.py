"""The plugin in a real SGLang server: kernels that are seen to run, and requests that end nothing.

On a CPU the ops run by their references: what is tested is that SGLang's calls reach them, that the
server computes the same, and that it says so.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.conftest import ROOT, EngineEnv
from tests.engine.hostile import REFUSED, SERVED, mutated
from tests.engine.servers import Server, free_port, running

ADD_PLUGIN = ROOT / "images/engine/add_plugin.py"
KEY = "a-key"
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
PROMPTS = ("2 + 3 =", "4 + 4 =", "1 + 7 =", "9 + 9 =")
GREEDY = {"temperature": 0, "max_new_tokens": 8}
OPS = {"matmul", "qk_norm_rope", "rms_norm", "sampler", "silu_mul"}
REACHED = OPS - {"matmul"}
"""Ops that a server on a CPU comes to: it has no deterministic mode, in which products are ours."""
ON_CPU = "tensors are on the CPU"
FUZZED = 1_000
SOME_REFUSED = (
    "a token above the vocabulary",
    "an empty text",
    "a penalty that float32 takes for 0",
    "a search with beams",
    "parameters of a kind that cannot travel",
    "labels that the metrics do not have",
)
"""That end a server without the plugin, or come to each of its hooks."""


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(headers=HEADERS, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def serve(
    engine_env: EngineEnv, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """Runs a server with the plugin, as the CPU image has it, and the kernels that are named."""
    plugin = tmp_path_factory.mktemp("plugin")
    subprocess.run([sys.executable, ADD_PLUGIN, plugin], check=True)

    def start(kernels: str) -> Any:
        return running(
            *(engine_env, model, tmp_path_factory.mktemp(kernels), free_port()),
            *("--api-key", KEY),
            PYTHONPATH=f"{plugin}:{engine_env.folder}",
            SGLANG_PLUGINS="assay",
            ASSAY_KERNELS=kernels,
        )

    return start


def generate(client: httpx.Client, url: str, text: Any, sampling: Any, **more: Any) -> Any:
    body = {"text": text, "sampling_params": sampling, **more}
    answer = client.post(f"{url}/generate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def greedy(client: httpx.Client, url: str) -> tuple[list[list[int]], list[float]]:
    """Tokens of all prompts in one batch, and their log-probs one after the other."""
    answers = generate(client, url, list(PROMPTS), GREEDY, return_logprob=True)
    found = [each["meta_info"]["output_token_logprobs"] for each in answers]
    return [each["output_ids"] for each in answers], [row[0] for rows in found for row in rows]


def kernels(client: httpx.Client, url: str) -> Any:
    """The engine's record of active kernels, once its scheduler has published one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        report = client.get(f"{url}/assay/kernels").json()
        if any(process["role"] == "scheduler" for process in report["processes"]):
            return report
        time.sleep(0.2)
    pytest.fail(f"no scheduler published what it installed: {report}")


def ops(report: Any) -> dict[str, Any]:
    (scheduler,) = (each for each in report["processes"] if each["role"] == "scheduler")
    found: dict[str, Any] = scheduler["ops"]
    return found


def answers(client: httpx.Client, url: str) -> bool:
    """Whether the server still says something."""
    return bool(generate(client, url, PROMPTS[0], GREEDY)["output_ids"])


def not_refused(
    client: httpx.Client, url: str, bodies: Mapping[str, Any]
) -> list[tuple[str, int, str]]:
    """Of requests that would end a server, those that got no 400 that says why."""
    wrong = []
    for name, body in bodies.items():
        answer = client.post(f"{url}/generate", content=json.dumps(body))
        if answer.status_code != 400 or not answer.text:
            wrong.append((name, answer.status_code, answer.text[:200]))
        assert answers(client, url), name
    return wrong


@dataclass(frozen=True)
class Stock:
    """What a server with SGLang's own kernels said.

    Attributes:
        tokens: of greedy answers to all prompts.
        log_probs: theirs.
        record: of its active kernels.
        not_refused: of some requests that would end it.
    """

    tokens: list[list[int]]
    log_probs: list[float]
    record: Any
    not_refused: list[tuple[str, int, str]]


@pytest.fixture(scope="module")
def stock(serve: Callable[[str], Any], client: httpx.Client) -> Stock:
    """A server with SGLang's own kernels, which has ended."""
    with serve("stock") as server:
        said, record = greedy(client, server.url), kernels(client, server.url)
        some = {name: REFUSED[name] for name in SOME_REFUSED}
        return Stock(*said, record, not_refused(client, server.url, some))


@pytest.fixture(scope="module")
def fused(serve: Callable[[str], Any], stock: Stock) -> Iterator[Server]:
    """A server with the kernels, after the other has ended."""
    with serve("fused") as server:
        yield server


def test_with_stock_kernels_nothing_is_installed_but_requests_are_checked(stock: Stock) -> None:
    report = stock.record
    why_not = "the engine was started with ASSAY_KERNELS=stock"
    assert (report["kernels"], report["hardened"]) == ("stock", True)
    assert (report["active"], report["why_not"]) == (False, why_not)
    assert {name: op["installed"] for name, op in ops(report).items()} == dict.fromkeys(OPS, False)
    assert stock.not_refused == []


def test_fused_kernels_are_active_and_the_record_says_in_which_versions(
    fused: Server, client: httpx.Client
) -> None:
    report = kernels(client, fused.url)
    assert (report["active"], report["why_not"]) == (True, "")
    assert (report["sglang"], report["hardened"]) == ("0.5.23", True)
    assert {name: op["installed"] for name, op in ops(report).items()} == dict.fromkeys(OPS, True)
    (rank,) = (each["rank"] for each in report["processes"] if each["role"] == "scheduler")
    assert rank == {"tp": 0, "pp": 0, "dp": 0}


def test_counts_grow_with_requests(fused: Server, client: httpx.Client) -> None:
    before = ops(kernels(client, fused.url))
    generate(client, fused.url, PROMPTS[0], {"temperature": 1, "max_new_tokens": 8})

    def grown() -> set[str]:
        now = ops(kernels(client, fused.url))
        return {
            name
            for name in OPS
            if now[name]["fallbacks"].get(ON_CPU, 0) > before[name]["fallbacks"].get(ON_CPU, 0)
        }

    deadline = time.monotonic() + 30
    while grown() != REACHED and time.monotonic() < deadline:
        time.sleep(0.2)
    assert grown() == REACHED


def test_greedy_answers_are_those_of_stock_kernels(
    fused: Server, stock: Stock, client: httpx.Client
) -> None:
    found, found_log_probs = greedy(client, fused.url)
    assert found == stock.tokens
    assert found_log_probs == pytest.approx(stock.log_probs, abs=1e-4)


def test_sampled_answers_have_log_probs_beside_those_of_the_best_tokens(
    fused: Server, client: httpx.Client
) -> None:
    sampling = {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "max_new_tokens": 8}
    asked = {"return_logprob": True, "top_logprobs_num": 768, "return_text_in_logprobs": False}
    (answer,) = generate(client, fused.url, [PROMPTS[3]], sampling, **asked)
    meta = answer["meta_info"]
    for (log_prob, token, _), best in zip(
        meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True
    ):
        found = {other: value for value, other, _ in best}
        assert found[token] == pytest.approx(log_prob, abs=1e-4)
        assert sum(2.718281828**value for value in found.values()) == pytest.approx(1, abs=1e-3)


def test_the_record_needs_a_key_where_model_info_does(fused: Server) -> None:
    for path in ("/assay/kernels", "/model_info"):
        assert httpx.get(f"{fused.url}{path}", timeout=30).status_code == 401
        assert httpx.get(f"{fused.url}{path}", timeout=30, headers=HEADERS).status_code == 200


def test_requests_that_would_end_the_server_get_a_400_that_says_why(
    fused: Server, client: httpx.Client
) -> None:
    assert not_refused(client, fused.url, REFUSED) == []


def test_the_openai_endpoints_are_guarded_by_the_same_checks(
    fused: Server, client: httpx.Client
) -> None:
    question = {"model": "tiny", "messages": [{"role": "user", "content": "2 + 3 ="}]}
    for bad in ({"logit_bias": {"100000": 1}}, {"n": 100_000}, {"stop_token_ids": [-3]}):
        url = f"{fused.url}/v1/chat/completions"
        answer = client.post(url, json={**question, "max_tokens": 4, **bad})
        assert answer.status_code == 400, answer.text
    assert answers(client, fused.url)


def test_unusual_requests_are_served(fused: Server, client: httpx.Client) -> None:
    for name, body in SERVED.items():
        answer = client.post(f"{fused.url}/generate", content=json.dumps(body))
        assert answer.status_code == 200, (name, answer.text)


def test_requests_changed_at_random_do_not_end_the_server(
    fused: Server, client: httpx.Client
) -> None:
    """Many at a time, so that what is wrong with one could also hurt its neighbours."""
    bodies = [json.dumps(mutated(random.Random(seed))) for seed in range(FUZZED)]

    def send(body: str) -> int:
        url = f"{fused.url}/generate"
        try:
            return client.post(url, content=body).status_code
        except httpx.TransportError:
            # A connection that the server closed after another answer; a server that has ended
            # answers on a new one no more than on that.
            return httpx.post(url, content=body, headers=HEADERS, timeout=120).status_code

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(send, bodies))
    # 500 is for a grammar that leaves no token.
    assert {200, 400} <= found <= {200, 400, 500}
    assert fused.process.poll() is None
    assert answers(client, fused.url)
