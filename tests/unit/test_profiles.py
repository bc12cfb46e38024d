"""Engine profiles: properties that every row must have, and what is refused with which words."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from assay_operator.api.engine import Accelerator, Engine, Parallelism, Profile, Tuning
from assay_operator.api.reserved import RESERVED_ARGUMENTS, reserved_argument
from assay_operator.inference.profiles import (
    EngineProfile,
    UnsupportedProfile,
    accelerators,
    families,
    profile_of,
    resolve,
    rows,
)

PARALLEL_FLAGS = {"--tp-size", "--dp-size", "--attn-dp-size", "--ep-size"}
every_row = pytest.mark.parametrize("row", rows(), ids="/".join)


def flags(profile: EngineProfile) -> list[str]:
    return [argument.partition("=")[0] for argument in profile.args]


def test_the_table_has_the_names_of_the_api() -> None:
    assert set(families()) == set(get_args(Profile))
    assert set(accelerators()) == set(get_args(Accelerator))


def test_every_family_has_both_tunings_wherever_it_has_one() -> None:
    pairs = {row[:2] for row in rows()}
    assert {(*pair, tuning) for pair in pairs for tuning in get_args(Tuning)} == set(rows())


def test_auto_runs_everywhere() -> None:
    assert {row[1] for row in rows() if row[0] == "auto"} == set(accelerators())


@every_row
def test_no_argument_is_given_twice(row: tuple[str, str, str]) -> None:
    given = flags(resolve(*row, None))
    assert len(given) == len(set(given))


@every_row
def test_each_argument_is_one_word(row: tuple[str, str, str]) -> None:
    """`--flag=value`, so that extraArgs can be compared with it and no value looks like a flag."""
    for argument in resolve(*row, None).args:
        assert re.fullmatch(r"--[a-z0-9-]+(=[^\s=]+)?", argument)


@every_row
def test_reserved_arguments_come_only_from_parallelism_and_accelerator(
    row: tuple[str, str, str],
) -> None:
    reserved = {flag for flag in flags(resolve(*row, None)) if flag in RESERVED_ARGUMENTS}
    assert reserved <= PARALLEL_FLAGS | {"--device"}


@every_row
def test_an_engine_fits_a_node(row: tuple[str, str, str]) -> None:
    profile = resolve(*row, None)
    assert (profile.resource is None) == (profile.gpus == 0) == (row[1] == "cpu")
    assert profile.gpus <= 8
    assert 120 <= profile.startup_seconds <= 3600
    assert set(profile.requests) == {"cpu", "memory"}


@every_row
def test_health_is_not_tied_to_generation(row: tuple[str, str, str]) -> None:
    assert resolve(*row, None).env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] == "0"


@every_row
def test_no_plugin_is_loaded_but_ours_and_it_may_write_its_record(
    row: tuple[str, str, str],
) -> None:
    env = resolve(*row, None).env
    assert env["SGLANG_PLUGINS"] == "assay", "empty would mean all that an image holds"
    assert env["ASSAY_KERNELS_DIR"].startswith("/tmp/"), "the root file system is read-only"


def test_the_cpu_row_bounds_its_memory() -> None:
    """SGLang sizes the KV cache by the node's memory, not by the container's limit."""
    profile = resolve("auto", "cpu", "throughput", None)
    assert "--max-total-tokens" in flags(profile)
    assert "--sleep-on-idle" in flags(profile)
    assert profile.products == ()


@pytest.mark.parametrize(
    ("parallelism", "rendered", "gpus"),
    [
        (Parallelism(), [], 1),
        (Parallelism(tensor=4), ["--tp-size=4"], 4),
        (Parallelism(tensor=2, data=3), ["--tp-size=2", "--dp-size=3"], 6),
        (Parallelism(tensor=4, expert=2), ["--tp-size=4", "--ep-size=2"], 4),
    ],
)
def test_parallelism_is_rendered_where_it_differs_from_one(
    parallelism: Parallelism, rendered: list[str], gpus: int
) -> None:
    profile = resolve("auto", "nvidia-h200", "throughput", parallelism)
    assert [arg for arg in profile.args if arg.partition("=")[0] in PARALLEL_FLAGS] == rendered
    assert profile.gpus == gpus
    assert profile.requests["memory"] == f"{64 * gpus}Gi"


def test_attention_data_parallel_ranks_share_gpus() -> None:
    profile = resolve("deepseek-v3", "nvidia-h200", "throughput", None)
    assert profile.gpus == 8
    assert "--attn-dp-size=8" in profile.args
    assert "--dp-size" not in flags(profile)


def test_kernels_are_fused_on_gpus_and_stock_on_the_cpu_unless_the_spec_says() -> None:
    for accelerator in accelerators():
        default = "stock" if accelerator == "cpu" else "fused"
        for asked in (None, "fused", "stock"):
            found = profile_of(Engine(accelerator=accelerator, kernels=asked))
            assert found.kernels == found.env["ASSAY_KERNELS"] == (asked or default)


@pytest.mark.parametrize("asked", [False, True])
def test_the_deterministic_mode_is_an_argument_of_sglangs(asked: bool) -> None:
    profile = profile_of(Engine(accelerator="nvidia-h200", deterministic=asked))
    assert ("--enable-deterministic-inference" in profile.args) is asked


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (("auto", "cpu"), "choose another spec.engine.accelerator"),
        (("deepseek-v4-flash", "nvidia-h200"), "choose another spec.engine.profile"),
    ],
)
def test_the_deterministic_mode_is_refused_where_there_is_none(
    row: tuple[str, str], remedy: str
) -> None:
    with pytest.raises(UnsupportedProfile, match=f"SGLang has no deterministic mode .*{remedy}"):
        resolve(*row, "throughput", None, deterministic=True)


@pytest.mark.parametrize(
    ("row", "parallelism", "words"),
    [
        (("deepseek-v3", "nvidia-h100"), None, "deepseek-v3 runs on: nvidia-h200, nvidia-b200"),
        (("deepseek-v3", "cpu"), None, "cpu has: auto, qwen3, llama"),
        (("auto", "cpu"), Parallelism(tensor=2), "must be 1"),
        (("auto", "nvidia"), Parallelism(tensor=4, expert=3), "must divide tensor"),
        (("auto", "nvidia"), Parallelism(tensor=8, data=2), "asks for 16 GPUs"),
        (("deepseek-v3", "nvidia-b200"), Parallelism(tensor=8, data=3), "must divide tensor"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    row: tuple[str, str], parallelism: Parallelism | None, words: str
) -> None:
    with pytest.raises(UnsupportedProfile, match=re.escape(words)):
        resolve(*row, "throughput", parallelism)


@pytest.mark.parametrize(
    ("argument", "flag"),
    [
        ("--tp-size", "--tp-size"),
        ("--tp=4", "--tp-size"),
        ("--trust", "--trust-remote-code"),
        ("--trust-remote-code=true", "--trust-remote-code"),
        ("-h", "-h"),
        ("--context-length", None),
        ("8192", None),
        ("--", None),
        ("-1", None),
    ],
)
def test_a_reserved_argument_is_known_by_any_beginning(argument: str, flag: str | None) -> None:
    assert reserved_argument(argument) == flag


def test_every_remedy_says_what_to_do() -> None:
    assert all(flag.startswith("-") for flag in RESERVED_ARGUMENTS)
    assert all(len(remedy) > 10 for remedy in RESERVED_ARGUMENTS.values())
