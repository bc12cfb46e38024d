"""Drawing from engines: what is believed, who is out, how one comes back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from assay_trainer.batch import Completion
from assay_trainer.engine import EngineError, Refused, bearer
from assay_trainer.engines import Engines
from assay_trainer.settings import Rollout
from assay_trainer.versions import Loaded, Weights, age
from assay_trainer.weights import load_from
from tests.trainer.engine_server import (
    VOCABULARY,
    EngineServer,
    completion,
    dies,
    hangs,
    says,
)

PROMPT = (5, 6, 7)


@pytest.fixture
def two() -> Iterator[tuple[EngineServer, EngineServer]]:
    with EngineServer() as a, EngineServer() as b:
        yield a, b


@pytest.fixture
def one() -> Iterator[EngineServer]:
    with EngineServer() as engine:
        yield engine


@asynccontextmanager
async def started(
    *servers: EngineServer, token: str | None = None, seeded: bool = False, **more: Any
) -> AsyncIterator[Engines]:
    settings = Rollout.model_validate(
        {
            "engines": [server.url for server in servers],
            "requestSeconds": 5,
            "waitSeconds": 10,
            **more,
        }
    )
    async with Engines(settings, VOCABULARY, token=token, seeded=seeded) as engines:
        await engines.start()
        yield engines


async def drawn(engines: Engines, n: int = 2, ids: tuple[int, ...] = PROMPT) -> list[Completion]:
    return await engines.generate(ids, n=n, max_tokens=4, temperature=1.0)


async def give(engines: Engines, folder: Path, version: str) -> Loaded:
    """New weights, in a folder that is there."""
    place = folder / version
    place.mkdir(exist_ok=True)

    async def where() -> Path:
        return place

    return await engines.renew(Weights(version, where), load_from(place, version))


async def until(so: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


def usable(engines: Engines) -> list[bool]:
    return [state.usable for state in engines.states]


async def test_completions_have_the_engines_own_ids_log_probs_and_weights(
    one: EngineServer,
) -> None:
    async with started(one) as engines:
        first, second = await drawn(engines)
    assert (first.ids, second.ids) == ((1, 2), (2, 2))
    assert first.log_probs == (-0.51, -0.52)
    assert first.versions == ("default", "default")
    assert first.finish == "stop"


async def test_deterministic_engines_get_a_seed_for_each_completion_so_that_these_differ(
    one: EngineServer,
) -> None:
    async with started(one, seeded=True) as engines:
        drawn = await engines.generate(PROMPT, n=16, max_tokens=4, temperature=0.7)
        await engines.generate(PROMPT, n=1, max_tokens=4, temperature=0)
    several, alone = one.bodies
    assert several["input_ids"] == [[5, 6, 7]] * 16
    assert {(s["n"], s["temperature"]) for s in several["sampling_params"]} == {(1, 0.7)}
    assert len({s["sampling_seed"] for s in several["sampling_params"]}) == 16
    assert len(drawn) == 16 and len({completion.ids for completion in drawn}) > 1
    assert len(alone["sampling_params"]) == 1


async def test_a_group_is_one_request_whose_sampling_leaves_nothing_to_the_engines_preferences(
    one: EngineServer,
) -> None:
    async with started(one) as engines:
        await engines.generate(PROMPT, n=16, max_tokens=4, temperature=0.7)
    (body,) = one.bodies
    assert body["input_ids"] == [5, 6, 7]
    assert body["return_logprob"] is True
    assert body["sampling_params"] == {
        "n": 16,
        "temperature": 0.7,
        "max_new_tokens": 4,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
        "ignore_eos": False,
    }


async def test_a_single_completion_comes_without_a_list(one: EngineServer) -> None:
    async with started(one) as engines:
        assert len(await drawn(engines, n=1)) == 1


async def test_tokens_drawn_across_an_update_carry_their_own_versions(
    one: EngineServer, tmp_path: Path
) -> None:
    async with started(one) as engines:
        await give(engines, tmp_path, "1.4")
        spans = [
            {"version": "1.4", "start": 0, "end": 2},
            {"version": "1.5", "start": 2, "end": 3},
        ]
        one.faults["/generate"] = [
            lambda _, __: time.sleep(0.2) or completion([3, 4, 5], "1.5", weight_versions=spans)
        ]
        drawing = asyncio.create_task(drawn(engines, n=1))
        await until(lambda: one.asked["/generate"] == 1)
        await give(engines, tmp_path, "1.5")
        (only,) = await drawing
    assert only.versions == ("1.4", "1.4", "1.5")


async def test_requests_go_to_the_engine_with_the_least_to_do(
    two: tuple[EngineServer, EngineServer],
) -> None:
    for server in two:
        server.slowly = 0.1
    async with started(*two) as engines:
        await asyncio.gather(*(drawn(engines) for _ in range(6)))
    assert [len(server.bodies) for server in two] == [3, 3]


async def test_no_engine_has_more_requests_than_the_job_says(
    two: tuple[EngineServer, EngineServer],
) -> None:
    for server in two:
        server.slowly = 0.05
    async with started(*two, concurrency=3) as engines:
        await asyncio.gather(*(drawn(engines) for _ in range(30)))
    assert [server.most for server in two] == [3, 3]
    assert all(len(server.bodies) >= 10 for server in two)


NONSENSE: dict[str, Any] = {
    "no object": [1, 2],
    "one too few": [completion([1], "default")],
    "no list": {"text": "hello"},
    "no tokens": [completion([], "default")] * 2,
    "more tokens than were asked for": [completion([1] * 5, "default")] * 2,
    "an id beyond the vocabulary": [completion([VOCABULARY], "default")] * 2,
    "a negative id": [completion([-1], "default")] * 2,
    "no log-probs": [{**completion([1], "default"), "meta_info": {"finish_reason": "stop"}}] * 2,
    "a log-prob above 0": [completion([1], "default", output_token_logprobs=[[0.5, 1, None]])] * 2,
    "a log-prob that is no number": [
        completion([1], "default", output_token_logprobs=[[math.nan, 1, None]])
    ]
    * 2,
    "null for a log-prob": [completion([1], "default", output_token_logprobs=[[None, 1, None]])]
    * 2,
    "the log of 0": [completion([1], "default", output_token_logprobs=[[-3.4e38, 1, None]])] * 2,
    "fewer log-probs than ids": [
        completion([1, 2], "default", output_token_logprobs=[[-0.5, 1, None]])
    ]
    * 2,
    "other ids beside the log-probs": [
        completion([1], "default", output_token_logprobs=[[-0.5, 2, None]])
    ]
    * 2,
    "given up": [completion([1], "default", finish_reason={"type": "abort"})] * 2,
    "no reason of the end": [completion([1], "default", finish_reason=None)] * 2,
    "no weights": [completion([1], "default", weight_version=None)] * 2,
    "weights for some tokens": [
        completion(
            [1, 2], "default", weight_versions=[{"version": "default", "start": 0, "end": 1}]
        )
    ]
    * 2,
    "no JSON": b"Internal Server Error",
    "JSON without an end": b"[" * 100_000,
    "more than fits": b" " * (3 << 20),
    "an error": (500, {"error": {"message": "CUDA error"}}),
    "overload": (503, {"error": "the queue is full"}),
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_not_believed_and_another_engine_is_asked(
    two: tuple[EngineServer, EngineServer], answer: Any
) -> None:
    for server in two:
        server.faults["/generate"] = []
    async with started(*two) as engines:
        two[0].faults["/generate"] = [says(answer)]
        assert len(await drawn(engines)) == 2
        assert len(two[1].bodies) == 1
        assert usable(engines) == [False, True]


@pytest.mark.parametrize("fault", [hangs, dies])
async def test_an_engine_that_hangs_or_dies_in_the_middle_is_out_and_another_one_is_asked(
    two: tuple[EngineServer, EngineServer], fault: Any
) -> None:
    async with started(*two, requestSeconds=0.4) as engines:
        two[0].faults["/generate"] = [fault]
        began = time.monotonic()
        assert len(await drawn(engines)) == 2
        assert time.monotonic() - began < 3
        assert usable(engines) == [False, True]


async def test_a_request_that_fails_everywhere_ends_after_the_attempts_and_tells_why(
    two: tuple[EngineServer, EngineServer],
) -> None:
    for server in two:
        server.always["/generate"] = says((500, {"error": {"message": "out of memory"}}))
    async with started(*two, attempts=3) as engines:
        with pytest.raises(EngineError, match="3 attempts of one request failed") as raised:
            await drawn(engines)
    assert sum(server.asked["/generate"] for server in two) == 3
    for server in two:
        assert f"{server.url}: /generate: HTTP 500: out of memory" in str(raised.value)


async def test_a_request_that_an_engine_refuses_is_an_error_at_once_and_no_engine_is_out(
    two: tuple[EngineServer, EngineServer],
) -> None:
    said = "Requested token count exceeds the model's maximum context length of 2048 tokens."
    two[0].always["/generate"] = says((400, {"error": {"message": said}}))
    async with started(*two) as engines:
        with pytest.raises(Refused, match="maximum context length of 2048"):
            await drawn(engines)
        assert usable(engines) == [True, True]
    assert two[1].asked["/generate"] == 0


@pytest.mark.parametrize("token", [VOCABULARY, -1])
async def test_an_id_beyond_the_vocabulary_never_reaches_an_engine_which_would_die_of_it(
    one: EngineServer, token: int
) -> None:
    async with started(one) as engines:
        with pytest.raises(EngineError, match=f"token id {token}, but the model has 100"):
            await drawn(engines, ids=(1, token))
    assert one.asked["/generate"] == 0


async def test_a_restarted_engine_gets_the_current_weights_before_a_prompt(
    one: EngineServer, tmp_path: Path
) -> None:
    async with started(one) as engines:
        await give(engines, tmp_path, "1.1")
        one.down()
        drawing = asyncio.create_task(drawn(engines))
        await until(lambda: usable(engines) == [False])
        one.up(version="default")
        assert {v for c in await drawing for v in c.versions} == {"1.1"}
    assert one.path == str(tmp_path / "1.1")
    assert set(one.drawn_with) == {"1.1"}


async def test_an_engine_that_draws_with_other_weights_is_not_believed_and_gets_the_right_ones(
    one: EngineServer, tmp_path: Path
) -> None:
    async with started(one) as engines:
        await give(engines, tmp_path, "1.1")
        # As after a restart that nobody saw.
        one.version = "default"
        assert {v for c in await drawn(engines) for v in c.versions} == {"1.1"}
    assert one.drawn_with == ["default", "1.1"]


async def test_an_engine_that_comes_back_after_an_update_gets_what_is_current_then(
    two: tuple[EngineServer, EngineServer], tmp_path: Path
) -> None:
    async with started(*two) as engines:
        await give(engines, tmp_path, "1.1")
        two[1].down()
        await asyncio.gather(drawn(engines), drawn(engines))
        await until(lambda: usable(engines) == [True, False])
        assert (await give(engines, tmp_path, "1.2")).good == (two[0].url,)
        two[1].up(version="default")
        await until(lambda: usable(engines) == [True, True])
        assert two[1].version == "1.2"
    assert "default" not in two[1].drawn_with


async def test_an_engine_that_fails_again_and_again_is_looked_at_less_and_less(
    two: tuple[EngineServer, EngineServer],
) -> None:
    async with started(*two) as engines:
        two[0].always["/generate"] = says([])
        two[0].always["/model_info"] = says((500, {}))
        await asyncio.gather(drawn(engines), drawn(engines))
        looks = two[0].asked["/model_info"]
        await asyncio.sleep(1.7)
    # After 0.5 s and 1 s more; the next would be 2 s later.
    assert two[0].asked["/model_info"] - looks == 2


async def test_one_failure_of_many_requests_at_once_counts_once(one: EngineServer) -> None:
    one.faults["/generate"] = [hangs] * 8
    async with started(one, requestSeconds=1) as engines:
        began = time.monotonic()
        await asyncio.gather(*(drawn(engines) for _ in range(8)))
        # 1 s until they are given up, 0.5 s until the engine is looked at; not 32 s.
        assert time.monotonic() - began < 6
        assert usable(engines) == [True]


async def test_a_run_waits_for_the_first_engine(one: EngineServer) -> None:
    one.down()
    starting = asyncio.create_task(_start(one))
    await asyncio.sleep(0.2)
    assert not starting.done()
    one.up()
    assert await starting == [True]


async def _start(*servers: EngineServer) -> list[bool]:
    async with started(*servers) as engines:
        return usable(engines)


async def test_a_run_without_engines_ends_with_where_it_looked_and_what_to_do(
    two: tuple[EngineServer, EngineServer],
) -> None:
    two[0].down()
    two[1].always["/model_info"] = says({"object": "list"})
    with pytest.raises(EngineError, match="no engine is usable for 1 s") as raised:
        async with started(*two, waitSeconds=1):
            pass
    said = str(raised.value)
    assert f"{two[0].url}: /model_info: All connection attempts failed" in said
    assert f"{two[1].url}: /model_info tells no weight_version and model_path" in said
    assert "Start SGLang there, or name others in rollout.engines" in said


RUNS = {"active": True, "kernels": "fused"}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((404, {"detail": "Not Found"}), "the plugin is not in it"),
        ({"active": False, "kernels": "fused", "why_not": "no sampler"}, "no sampler"),
        ({"active": True, "kernels": "stock"}, "it runs stock kernels"),
        ([], "it runs None kernels"),
        ((500, {}), "/assay/kernels: HTTP 500"),
    ],
)
async def test_an_engine_without_the_kernels_that_the_job_wants_gets_no_prompt(
    two: tuple[EngineServer, EngineServer], said: Any, why: str
) -> None:
    two[0].always["/assay/kernels"] = says(RUNS)
    two[1].always["/assay/kernels"] = says(said)
    async with started(*two, kernels="fused") as engines:
        await asyncio.gather(*(drawn(engines) for _ in range(4)))
        assert usable(engines) == [True, False] and why in engines.states[1].reason
        two[1].always["/assay/kernels"] = says(RUNS)
        await until(lambda: usable(engines) == [True, True])
    assert not two[1].bodies


async def test_an_engine_that_loses_its_kernels_in_a_restart_that_nobody_saw_is_out(
    two: tuple[EngineServer, EngineServer], tmp_path: Path
) -> None:
    for server in two:
        server.always["/assay/kernels"] = says(RUNS)
    async with started(*two, kernels="fused") as engines:
        del two[1].always["/assay/kernels"]
        assert (await give(engines, tmp_path, "1.1")).good == (two[0].url,)
        await asyncio.gather(*(drawn(engines) for _ in range(4)))
        assert "the plugin is not in it" in engines.states[1].reason
    assert not two[1].bodies


async def test_engines_are_not_asked_for_kernels_that_the_job_does_not_want(
    one: EngineServer,
) -> None:
    async with started(one) as engines:
        await drawn(engines)
    assert not one.asked["/assay/kernels"]


async def test_a_prompt_waits_for_an_engine_no_longer_than_the_job_says(one: EngineServer) -> None:
    async with started(one, waitSeconds=0.7) as engines:
        one.down()
        with pytest.raises(EngineError, match="no engine is usable for"):
            await drawn(engines)


async def test_one_of_two_engines_is_enough_to_start(
    two: tuple[EngineServer, EngineServer],
) -> None:
    two[1].down()
    assert await _start(*two) == [True, False]


@pytest.mark.parametrize("ticks", range(6))
async def test_cancelled_requests_give_their_place_back_whenever_they_are_cancelled(
    one: EngineServer, ticks: int
) -> None:
    one.faults["/generate"] = [hangs]
    async with started(one, concurrency=1, requestSeconds=30) as engines:
        stuck = asyncio.create_task(drawn(engines))
        await until(lambda: one.asked["/generate"] == 1)
        waiting = [asyncio.create_task(drawn(engines)) for _ in range(3)]
        await asyncio.sleep(0.05)
        stuck.cancel()
        for _ in range(ticks):
            await asyncio.sleep(0)
        waiting[0].cancel()
        both = asyncio.gather(*waiting[1:])
        assert [len(found) for found in await asyncio.wait_for(both, 5)] == [2, 2]


async def test_the_token_is_sent_and_a_wrong_one_names_the_field(
    one: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.token = "s3cret"
    with pytest.raises(EngineError, match=r"HTTP 401: .*rollout\.tokenEnv"):
        async with started(one, waitSeconds=0.3):
            pass
    async with started(one, token="s3cret") as engines:
        assert len(await drawn(engines)) == 2
    settings = Rollout.model_validate({"engines": [one.url], "tokenEnv": "ENGINE_TOKEN"})
    with pytest.raises(EngineError, match="the variable ENGINE_TOKEN is not set"):
        bearer(settings)
    monkeypatch.setenv("ENGINE_TOKEN", "s3cret")
    assert bearer(settings) == "s3cret"


async def test_passwords_in_urls_are_told_to_nobody() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(EngineServer())
        server.down()
        url = server.url.replace("http://", "http://me:s3cret@")
        settings = Rollout.model_validate({"engines": [url], "waitSeconds": 0.2})
        async with Engines(settings, VOCABULARY) as engines:
            with pytest.raises(EngineError) as raised:
                await engines.start()
            assert "s3cret" not in str(raised.value) + str(engines.states)


async def test_an_address_that_is_none_is_a_reason_and_no_hang() -> None:
    settings = Rollout.model_validate({"engines": ["http://a:99999999"], "waitSeconds": 0.2})
    async with Engines(settings, VOCABULARY) as engines:
        with pytest.raises(EngineError, match="no engine is usable"):
            await engines.start()


def test_versions_are_ordered_by_attempt_and_step_as_numbers() -> None:
    assert age("2.0") > age("1.100") > age("1.99")
