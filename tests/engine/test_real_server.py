"""The launcher, the CPU profile and the tiny model together: a real SGLang server on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from assay_operator.inference.objects import ROUTER_START
from assay_operator.sglang.client import workers as listed_workers
from tests.engine.conftest import MAKE_MODEL, EngineEnv
from tests.engine.servers import (
    VERSION,
    Server,
    free_port,
    launch_environment,
    launch_line,
    running,
)

QUESTION: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "2 + 3 ="}],
    "temperature": 0,
}
CONTROL_PLANE = (
    ("GET", "/workers"),
    ("POST", "/workers"),
    ("DELETE", "/workers/x"),
    ("POST", "/flush_cache"),
    ("POST", "/wasm"),
    ("POST", "/v1/tokenizers"),
)


@pytest.fixture(scope="module")
def server(
    engine_env: EngineEnv, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with running(engine_env, model, tmp_path_factory.mktemp("server"), free_port()) as server:
        yield server


def ask(url: str, **more: Any) -> Any:
    answer = httpx.post(f"{url}/v1/chat/completions", json={**QUESTION, **more}, timeout=60)
    answer.raise_for_status()
    return answer.json()


def test_it_reports_what_the_pointer_names(server: Server, model: Path) -> None:
    info = httpx.get(f"{server.url}/model_info", timeout=10).json()
    assert info["weight_version"] == VERSION
    assert info["model_path"] == str(model)
    assert info["load_format"] == "safetensors"


def test_a_sum_is_answered_and_says_which_weights_did(server: Server) -> None:
    answer = ask(server.url)
    assert answer["choices"][0]["message"]["content"] == "5"
    assert answer["metadata"]["weight_version"] == VERSION


def test_a_streamed_completion_has_the_same_words(server: Server) -> None:
    request = {**QUESTION, "stream": True}
    words, done = "", False
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=request, timeout=60) as stream:
        for line in stream.iter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                choices = json.loads(line[6:])["choices"]
                words += (choices and choices[0]["delta"].get("content")) or ""
    assert (words, done) == ("5", True)


def test_a_paused_engine_is_alive_but_not_ready(server: Server) -> None:
    """What the probes rely on: a weight update pauses an engine, and must not get it killed."""
    httpx.post(f"{server.url}/pause_generation", json={"mode": "retract"}, timeout=10)
    try:
        assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
        assert httpx.get(f"{server.url}/ready", timeout=10).status_code == 503
    finally:
        httpx.post(f"{server.url}/continue_generation", json={}, timeout=10)
    assert httpx.get(f"{server.url}/ready", timeout=10).status_code == 200


def test_loads_have_what_the_operator_reads(server: Server) -> None:
    (load,) = httpx.get(f"{server.url}/v1/loads", timeout=10).json()["loads"]
    assert load["num_running_reqs"] == load["num_waiting_reqs"] == 0
    assert load["max_total_num_tokens"] == 16384


def test_a_missing_model_ends_with_the_launchers_status(
    engine_env: EngineEnv, tmp_path: Path
) -> None:
    environment = launch_environment(engine_env, tmp_path, tmp_path / "absent")
    run = subprocess.run(
        launch_line(engine_env, free_port()),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 66
    assert "does not exist" in (tmp_path / "termination-log").read_text()


def test_an_unknown_argument_is_named_at_the_end(
    engine_env: EngineEnv, tmp_path: Path, model: Path
) -> None:
    run = subprocess.run(
        launch_line(engine_env, free_port(), "--no-such-flag", "7"),
        env=launch_environment(engine_env, tmp_path, model),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "--no-such-flag" in run.stderr.splitlines()[-1]


def test_router_lists_and_reaches_the_engine_and_lets_nobody_change_its_list(
    engine_env: EngineEnv, server: Server, tmp_path: Path
) -> None:
    """The router comes from the same packages; its workers from a file, as in a cluster."""
    workers = tmp_path / "workers.json"
    workers.write_text(json.dumps({"version": 1, "workers": [{"url": server.url}]}))
    port, metrics = free_port(), free_port()
    router = subprocess.Popen(
        [
            *(engine_env.python, "-c", ROUTER_START, "--host", "127.0.0.1", "--port", str(port)),
            *("--policy", "cache_aware", "--discovery-provider", "file"),
            *("--discovery-file", str(workers), "--discovery-check-interval-secs", "1"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)),
        ],
        env=engine_env.environment(HOME=str(tmp_path)),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_worker(url)
        page = httpx.get(f"http://127.0.0.1:{metrics}/metrics", timeout=10).text
        assert listed_workers(page).healthy == {server.url}
        assert ask(url)["choices"][0]["message"]["content"] == "5"
        for method, path in CONTROL_PLANE:
            answer = httpx.request(method, f"{url}{path}", json={"url": "http://evil"}, timeout=10)
            assert answer.status_code == 401, f"{method} {path}"
    finally:
        router.terminate()
        router.wait(30)


def gate(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """`assay-verify gate` on the sums that the small model was trained on: exit code and report."""
    suite = folder / "sums.jsonl"
    items = [
        {"id": f"{a}+{b}", "prompt": f"{a} + {b} =", "reference": a + b}
        for a in range(1, 10)
        for b in range(1, 10)
    ]
    head = {"suite": "sums", "verifier": {"type": "math"}, "maxTokens": 8}
    suite.write_text("".join(json.dumps(line) + "\n" for line in (head, *items)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "assay_verifiers", "gate", "--suite", str(suite)),
            *("--out", str(folder / "weighed"), *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    report = folder / "weighed" / "report.json"
    assert report.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(report.read_text())


def load_weights(server: Server, folder: Path, version: str) -> None:
    answer = httpx.post(
        f"{server.url}/update_weights_from_disk",
        json={"model_path": str(folder), "weight_version": version, "flush_cache": True},
        timeout=60,
    )
    assert answer.json()["success"], answer.text


def test_the_gate_passes_a_model_beside_itself_and_fails_an_untrained_one(
    engine_env: EngineEnv, server: Server, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "same").mkdir()
    code, report = gate(
        tmp_path / "same",
        *("--candidate", server.url, "--incumbent", server.url),
        *("--min-score", "0.5", "--max-regression", "0.05"),
    )
    assert (code, report["verdict"]) == (0, "pass"), report["reason"]
    assert report["sides"]["candidate"]["weightVersions"] == [VERSION]

    (tmp_path / "worse").mkdir()
    untrained = tmp_path / "untrained"
    made = engine_env.run([MAKE_MODEL, "--out", untrained, "--seed", "7", "--steps", "0"])
    assert made.returncode == 0, made.stderr
    load_weights(server, untrained, "sha256:untrained")
    try:
        code, report = gate(tmp_path / "worse", *("--candidate", server.url, "--min-score", "0.5"))
    finally:
        load_weights(server, model, VERSION)
    assert (code, report["verdict"]) == (1, "fail"), report["reason"]
    assert report["sides"]["candidate"]["weightVersions"] == ["sha256:untrained"]


def wait_for_worker(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readiness", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail("the router did not become ready")
