"""A batch in, better weights out: exactly those that the formulas say, whatever the cut."""

from __future__ import annotations

import dataclasses
import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from assay_trainer import folder as folders
from assay_trainer.algorithms.advantage import grpo
from assay_trainer.algorithms.loss import Packed, Totals, policy_loss
from assay_trainer.batch import Batch
from assay_trainer.learner import Learner, LearnerError
from assay_trainer.model import load_policy
from assay_trainer.packing import layout
from assay_trainer.processes import World
from assay_trainer.schedule import rate
from assay_trainer.snapshot import StateError
from tests.trainer.learners import OBJECTIVES, apart, first_gradients
from tests.trainer.models import batch, job, policy


def learner(seed: int = 1, folder: Path | None = None, **changes: Any) -> Learner:
    """One with a tiny model of that seed, and another one as its reference."""
    made = job(folder, **changes)
    reference = policy(seed=5) if made.algorithm.kl.coef else None
    return Learner(made, World(), policy(seed=seed), reference)


def plain_gradients(made: Batch, **changes: Any) -> tuple[dict[str, Tensor], float]:
    """The first update's gradients and loss by the plain model, one sequence at a time."""
    model, reference = policy().model, policy(seed=5).model
    asked = job(**changes).algorithm
    said: dict[str, list[Tensor]] = {"new": [], "reference": [], "entropy": []}
    for one in (model, reference):
        one.set_attn_implementation("eager")
        one.eval()
        for sample in made.samples:
            ids = torch.tensor([[*sample.prompt, *sample.completion.ids]])
            logits = one(input_ids=ids).logits[0, len(sample.prompt) - 1 : -1]
            logs = functional.log_softmax(logits, -1)
            chosen = logs.gather(-1, torch.tensor(sample.completion.ids)[:, None]).squeeze(-1)
            said["new" if one is model else "reference"].append(chosen)
            if one is model:
                said["entropy"].append(-(logs.exp() * logs).sum(-1))
    lengths = torch.tensor([len(s.completion.ids) for s in made.samples])
    judged = torch.tensor([s.judged for s in made.samples])
    sequence = torch.repeat_interleave(lengths)
    rewards = torch.tensor([s.reward for s in made.samples], dtype=torch.float64)
    packed = Packed(
        log_probs=torch.cat(said["new"]),
        sampler=torch.tensor([v for s in made.samples for v in s.completion.log_probs]),
        advantages=grpo(rewards, torch.tensor([s.group for s in made.samples]), judged).float(),
        sequence=sequence,
        mask=judged[sequence],
        reference=torch.cat(said["reference"]).detach() if asked.kl.coef else None,
        entropy=torch.cat(said["entropy"]),
    )
    loss = policy_loss(packed, asked, Totals.of(sequence, packed.mask))
    loss.value.backward()
    return {n: p.grad for n, p in model.named_parameters()}, float(loss.value.detach())


MADE = batch(seed=1, groups=5, size=3, unjudged=2, same=1)


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=list(OBJECTIVES))
@pytest.mark.parametrize("budget", [4096, 40])
def test_the_gradient_of_a_step_is_that_of_the_plain_model_and_the_formulas(
    changes: dict[str, Any], budget: int
) -> None:
    wanted, loss = plain_gradients(MADE, **changes)
    made = learner(**changes, trainer__tokensPerMicroBatch=budget)
    told = made.learn(MADE)
    assert told["loss"] == pytest.approx(loss, abs=1e-6)
    assert apart(first_gradients(made), wanted) < 1e-5 * max(
        float(g.abs().max()) for g in wanted.values()
    )
    norm = math.sqrt(sum(float((g**2).sum()) for g in wanted.values()))
    assert told["grad/norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__tokensPerMicroBatch": 36},
        {"trainer__tokensPerMicroBatch": 90},
        {"trainer__logProbChunk": 1000},
        {"trainer__activationCheckpointing": True},
    ],
    ids=["small passes", "middling passes", "one chunk", "recomputed"],
)
def test_what_saves_memory_does_not_change_the_result(changes: dict[str, Any]) -> None:
    # AdamW's first update moves each weight by the rate, however small its gradient, so that a high
    # rate would show the rounding of gradients that are nearly 0.
    one, other = (learner(trainer__learningRate=1e-4, **more) for more in ({}, changes))
    told, again = one.learn(MADE), other.learn(MADE)
    assert apart(first_gradients(one), first_gradients(other)) < 1e-6
    assert apart(one.weights(), other.weights()) < 1e-6
    for name in told.keys() - {"seconds/train", "tokens/passed"}:
        assert again[name] == pytest.approx(told[name], rel=1e-5, abs=1e-6), name


def test_the_metrics_are_over_all_judged_tokens() -> None:
    told = learner().learn(MADE)
    judged = [s for s in MADE.samples if s.judged]
    assert told["tokens/trained"] == sum(len(s.completion.ids) for s in judged)
    assert told["samples/masked"] == pytest.approx(2 / 15)
    assert told["groups/uniform"] == pytest.approx(1 / 5)
    assert told["ratio/mean"] == pytest.approx(1.0)
    pairs = [(s.prompt, s.completion.ids) for s in judged]
    said = policy()(layout(pairs, padded=True))
    sampler = torch.tensor([v for s in judged for v in s.completion.log_probs])
    mismatch = (said.log_probs.detach() - sampler).abs()
    assert told["mismatch/mean"] == pytest.approx(float(mismatch.mean()), rel=1e-5)
    assert told["mismatch/max"] == pytest.approx(float(mismatch.max()), rel=1e-5)
    assert told["entropy"] == pytest.approx(float(said.entropy.mean()), rel=1e-5)


def test_samples_without_an_advantage_go_through_the_model_without_a_gradient() -> None:
    some = learner().learn(batch(groups=4, same=2))["tokens/passed"]
    every = learner().learn(batch(groups=4))["tokens/passed"]
    held = learner(algorithm__kl__coef=0.1).learn(batch(groups=4, same=2))["tokens/passed"]
    assert some < every == held


def test_what_was_not_judged_has_no_part_in_the_result() -> None:
    one, other = learner(), learner()
    changed = [
        s if s.judged else dataclasses.replace(s, prompt=(1, 2), reward=1.0) for s in MADE.samples
    ]
    one.learn(MADE)
    other.learn(dataclasses.replace(MADE, samples=tuple(changed)))
    assert apart(one.weights(), other.weights()) < 1e-6


def test_a_batch_in_which_nothing_was_judged_changes_nothing() -> None:
    made = learner()
    before = made.state()
    nobody = tuple(dataclasses.replace(s, judged=False) for s in MADE.samples)
    told = made.learn(dataclasses.replace(MADE, samples=nobody))
    assert told["tokens/trained"] == 0
    assert apart(made.state(), before) == 0
    assert made.updates == 0


def test_rewards_that_are_all_the_same_leave_only_momentum() -> None:
    made = learner()
    made.learn(batch(groups=4, same=4))
    assert made.updates == 1
    assert apart(made.weights(), learner().weights()) == 0


def test_later_updates_compare_with_the_log_probs_before_the_first() -> None:
    one, two = learner(), learner(trainer__updatesPerStep=2)
    once, twice = (made.learn(batch(groups=4)) for made in (one, two))
    assert once["ratio/max"] == once["ratio/min"] == 1.0
    assert twice["ratio/max"] > 1.01
    assert (one.updates, two.updates) == (1, 2)


def test_each_update_learns_from_its_share_of_the_prompts() -> None:
    made = batch(groups=4)
    half = Batch(1, tuple(s for s in made.samples if s.group < 2), 2)
    # Without a second gradient the first half alone has moved the weights.
    quiet = tuple(s if s.group < 2 else dataclasses.replace(s, judged=False) for s in made.samples)
    one, two = learner(trainer__steps=20), learner(trainer__updatesPerStep=2)
    one.learn(half)
    two.learn(dataclasses.replace(made, samples=quiet))
    assert one.updates == two.updates == 1
    assert apart(one.weights(), two.weights()) < 1e-6


def test_the_divergence_is_from_the_reference_which_never_learns() -> None:
    same = Learner(job(algorithm__kl__coef=0.1), World(), policy(), policy())
    assert same.learn(MADE)["kl"] == pytest.approx(0, abs=1e-9)
    assert same.learn(MADE)["kl"] > 1e-4
    with pytest.raises(ValueError, match="there is no reference model"):
        Learner(job(algorithm__kl__coef=0.1), World(), policy())


def test_a_long_gradient_is_cut_to_the_longest_that_the_job_allows() -> None:
    free, bound = learner(), learner(trainer__gradientClip=0.01)
    told = [made.learn(MADE)["grad/norm"] for made in (free, bound)]
    assert told[0] == told[1] > 0.01
    wanted = {n: g * (0.01 / told[0]) for n, g in first_gradients(free).items()}
    assert apart(first_gradients(bound), wanted) < 1e-7


def test_rewards_rise_when_it_learns_from_them() -> None:
    made = learner(trainer__learningRate=3e-3)
    pairs = [(s.prompt, s.completion.ids) for s in MADE.samples]

    def favour() -> float:
        with torch.no_grad():
            said = made.policy(layout(pairs, padded=True)).log_probs
        parts = said.split([len(completion) for _, completion in pairs])
        rewards = torch.tensor([s.reward if s.judged else 0.5 for s in MADE.samples])
        sums = torch.stack([part.mean() for part in parts])
        return float(((rewards - rewards.mean()) * sums).sum())

    before = favour()
    for _ in range(5):
        made.learn(MADE)
    assert favour() > before + 0.1


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_a_loss_that_is_no_number_ends_the_step_and_leaves_the_weights(name: str) -> None:
    made = learner()
    with torch.no_grad():
        dict(made.policy.model.named_parameters())[name].view(-1)[0] = float("nan")
    before = made.weights()
    with pytest.raises(LearnerError, match=r"step 1: the loss is nan; the weights were left"):
        made.learn(MADE)
    after = made.weights()
    assert all(torch.equal(after[n].nan_to_num(), before[n].nan_to_num()) for n in before)
    assert made.updates == 0


# Precision


def test_bf16_learns_nearly_the_same_with_fp32_weights_and_gives_bf16_to_the_engines() -> None:
    exact, half = learner(), learner(trainer__precision="bf16")
    told, near = exact.learn(MADE), half.learn(MADE)
    assert near["loss"] == pytest.approx(told["loss"], abs=0.01)
    one, other = first_gradients(half), first_gradients(exact)
    assert {g.dtype for g in one.values()} == {torch.float32}
    flat = [torch.cat([g.flatten() for g in found.values()]) for found in (one, other)]
    assert functional.cosine_similarity(*flat, 0) > 0.98
    assert {t.dtype for t in half.weights().values()} == {torch.bfloat16}
    assert {t.dtype for t in exact.weights().values()} == {torch.float32}


def test_weights_are_copies_that_training_does_not_change() -> None:
    made = learner()
    kept = made.weights()
    before = {name: tensor.clone() for name, tensor in kept.items()}
    made.learn(MADE)
    assert apart(kept, before) == 0 < apart(made.weights(), before)


# Going on


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_learner_that_goes_on_from_a_state_ends_with_the_same_bytes(precision: str) -> None:
    changes = {"trainer__precision": precision, "trainer__updatesPerStep": 2}
    one = learner(**changes, trainer__decay="cosine", trainer__warmupSteps=3)
    one.learn(batch(seed=1))
    kept = {name: tensor.clone() for name, tensor in one.state().items()}
    told = one.learn(batch(seed=2))
    other = learner(seed=8, **changes, trainer__decay="cosine", trainer__warmupSteps=3)
    other.load_state(kept)
    again = other.learn(batch(seed=2))
    mine, its = one.state(), other.state()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    del told["seconds/train"], again["seconds/train"]
    assert told == again


def test_a_state_from_before_the_first_update_can_be_gone_on_from() -> None:
    one, other = learner(), learner(seed=8)
    other.learn(MADE)
    other.load_state(one.state())
    one.learn(MADE)
    other.learn(MADE)
    assert apart(one.state(), other.state()) == 0


def test_a_state_of_another_model_is_refused() -> None:
    other = Learner(job(), World(), policy(intermediate_size=40))
    with pytest.raises(StateError, match=r"of another model: parameter/model\.layers\.0\.mlp"):
        other.load_state(learner().state())
    with pytest.raises(StateError, match="no state of a learner"):
        other.load_state({})


# Folders


@pytest.fixture(params=["llama", "qwen3", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind = "qwen3" if request.param == "tied" else request.param
    made = policy(kind, tie_word_embeddings=request.param == "tied")
    made.model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "chat_template.jinja", "manifest.json", "notes.pt"):
        (tmp_path / "model" / name).write_text("{}")
    return tmp_path / "model"


def test_a_written_folder_is_a_hugging_face_model_with_what_was_learned(folder: Path) -> None:
    made = Learner.load(job(folder), World())
    made.learn(MADE)
    out = folder.parent / "out"
    made.write(out)
    pairs = [(s.prompt, s.completion.ids) for s in MADE.samples]
    made.policy.eval()
    wanted = made.policy(layout(pairs, padded=True)).log_probs
    assert torch.equal(load_policy(out, chunk=7)(layout(pairs, padded=True)).log_probs, wanted)
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    assert apart(dict(model.state_dict()), dict(made.policy.model.state_dict())) == 0
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= names
    assert not names & {"manifest.json", "notes.pt"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o644}


def test_the_written_config_tells_the_dtype_of_the_weights(folder: Path) -> None:
    out = folder.parent / "out"
    Learner.load(job(folder, trainer__precision="bf16"), World()).write(out)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_policy(out).model.dtype == torch.float32


def test_large_weights_are_written_in_several_files_with_an_index(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "LARGEST", "20KB")
    out = folder.parent / "out"
    made = Learner.load(job(folder), World())
    made.write(out)
    assert len([*out.glob("model-*.safetensors")]) > 2
    again = load_policy(out)
    assert apart(dict(again.model.state_dict()), dict(made.policy.model.state_dict())) == 0


# The learning rate


def _rates(**changes: Any) -> list[float]:
    settings = job(trainer__learningRate=1.0, **changes).trainer
    return [rate(settings, n) for n in range(1, settings.steps * settings.updatesPerStep + 1)]


def test_the_rate_rises_over_the_warm_up_and_stays() -> None:
    assert _rates(trainer__warmupSteps=4) == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_warm_up_is_counted_in_steps_and_not_in_updates() -> None:
    assert _rates(trainer__warmupSteps=1, trainer__updatesPerStep=2)[:3] == [0.5, 1.0, 1.0]


def test_the_rate_falls_so_that_it_would_be_0_after_the_last_update() -> None:
    assert _rates(trainer__decay="linear") == pytest.approx([1 - n / 10 for n in range(10)])
    wanted = [(1 + math.cos(math.pi * n / 10)) / 2 for n in range(10)]
    assert _rates(trainer__decay="cosine") == pytest.approx(wanted)
    assert _rates(trainer__decay="linear", trainer__warmupSteps=5)[5] == 1.0
