"""The recorded runs of on-policy trainers prove something: they fit their table, and today's models give their start.

Some tests state what a release computes, by a plain formula, where that is not what its documents say.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity import on_policy_inputs as inputs
from tests.parity.on_policy_cases import CASES, COMMON, TRAINERS, OnPolicyCase
from tests.parity.on_policy_recording import OnPolicyRun, Update, recorded_run, run_names
from tests.parity.record_on_policy import PINS
from tests.parity.recording import excess

ALL = [(trainer, name) for trainer in CASES for name in CASES[trainer]]
VISIBLE = 1e-2
"""Two runs differ by more than this share of the larger number; a replay agrees to a tenth of it."""
recorded = functools.cache(recorded_run)


def agree(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert excess(actual.numpy(), expected.numpy()).max() <= 1


def differ(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((actual - expected).abs().max()) > VISIBLE * float(torch.maximum(actual.abs(), expected.abs()).max())


def counted(update: Update, extra: int = 0) -> torch.Tensor:
    """The positions up to the end token, and `extra` more: bool [B, R]."""
    positions = torch.arange(update.rollout["logprobs"].shape[1])
    return positions <= update.rollout["sequence_lengths"].unsqueeze(1) + extra


def copies(run: OnPolicyRun) -> int:
    return run.options.get("rloo_k", 1)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_recording_fits_the_table(trainer: str) -> None:
    assert run_names(trainer) == list(CASES[trainer])
    for name, case in CASES[trainer].items():
        run = recorded(trainer, name)
        assert run.versions["trl"] == TRAINERS[trainer]
        for key, value in {**COMMON, **case.settings}.items():
            if (key, value) != ("stop_token", "eos") or trainer == "ppo":
                assert run.options[key] == value, f"{name}: {key} changed since the recording"


def test_pins_are_the_releases_that_were_recorded() -> None:
    for trainer, release in TRAINERS.items():
        versions = recorded(trainer, "plain").versions
        assert f"trl=={release}" in PINS[trainer]
        assert {f"{name}=={number.partition('+')[0]}" for name, number in versions.items()} <= set(PINS[trainer])


def test_unknown_run_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="no run 'k2' of ppo; there are plain, "):
        recorded_run("ppo", "k2")


@pytest.mark.parametrize(("trainer", "name"), ALL)
def test_shapes_and_dtypes(trainer: str, name: str) -> None:
    run = recorded(trainer, name)
    assert len(run.updates) == 2
    assert run.sensitivity < 0.5
    for update in run.updates:
        rows, tokens = update.rollout["logprobs"].shape
        assert (rows, tokens) == (8, inputs.TOKENS)
        for key, tensor in update.rollout.items():
            assert tensor.dtype in (torch.float32, torch.int64), key
            assert tensor.dtype == torch.int64 or tensor.isfinite().all(), key
        epochs = run.options["num_ppo_epochs"]
        assert torch.equal(update.order.reshape(epochs, rows).sort().values, torch.arange(rows).expand(epochs, rows))
        assert all(len(losses) == len(update.order) for losses in update.losses.values())
        assert {"loss", "pg_loss"} <= set(update.losses)
        assert set(update.losses) - {"loss", "pg_loss"} == (set() if trainer == "rloo" else {"vf_loss"})
        assert "eps" not in update.log
    assert all(weight.dtype == torch.float32 for weight in run.weights.values())


@pytest.mark.parametrize(("trainer", "name"), ALL)
def test_prompts_and_completions_are_those_of_the_inputs(trainer: str, name: str) -> None:
    run, case = recorded(trainer, name), CASES[trainer][name]
    sampling = inputs.PinnedSampling(copies(run), case.end)
    for update in run.updates:
        queries = update.rollout["query_responses"][:, : update.rollout["context_length"]]
        assert torch.equal(sampling.prompt_numbers(queries), update.rollout["prompts"])
        responses, expected = update.rollout["postprocessed_responses"], sampling.take(queries)
        kept = counted(update)
        assert torch.equal(responses[kept], expected[kept])
        assert (responses[~kept] == inputs.PAD).all()
        if run.options["stop_token"] is None and run.options["stop_token_id"] is None:
            assert kept.all()
        else:
            ends = update.rollout["sequence_lengths"]
            assert ((expected[torch.arange(8), ends] == case.end) | (ends == inputs.TOKENS - 1)).all()


# ---------------------------------------------------------------------------------------------------------------------
# a replay starts from the same models


def hidden_of(model: Any, ids: torch.Tensor) -> Any:
    mask = ids != inputs.PAD
    position_ids = mask.cumsum(1) - mask.long()
    return model(ids.masked_fill(~mask, 0), attention_mask=mask, position_ids=position_ids, output_hidden_states=True)


def per_position(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The output of a value or reward model at every position, [B, S]."""
    return model.score(hidden_of(model, ids).hidden_states[-1]).squeeze(-1)


@pytest.mark.parametrize("shape", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("trainer", TRAINERS)
@torch.no_grad()
def test_models_of_today_give_the_first_rollout(trainer: str, shape: str) -> None:
    run = recorded(trainer, "plain" if shape == "gpt2" else shape)
    update = run.updates[0]
    ids, length = update.rollout["query_responses"], int(update.rollout["context_length"])
    kept, rows = counted(update), torch.arange(8)
    for name, model in {"logprobs": inputs.policy(shape), "ref_logprobs": inputs.reference(shape)}.items():
        logits = hidden_of(model, ids).logits[:, length - 1 : -1] / (run.options["temperature"] + 1e-7)
        logprobs = logits.log_softmax(-1).gather(2, ids[:, length:].unsqueeze(-1)).squeeze(-1)
        agree(logprobs.where(kept, 1.0), update.rollout[name])
    stopped = torch.cat([ids[:, :length], update.rollout["postprocessed_responses"]], dim=1)
    scores = per_position(inputs.reward_model(shape), stopped)
    agree(scores[rows, length + update.rollout["sequence_lengths"]], update.rollout["raw_scores"])
    if trainer != "rloo":
        values = per_position(inputs.value_model(shape), ids)[:, length - 1 : -1]
        agree(values.where(counted(update, 1), 0.0), update.rollout["values"])


@pytest.mark.parametrize(("trainer", "name"), ALL)
def test_every_weight_moved(trainer: str, name: str) -> None:
    run, case = recorded(trainer, name), CASES[trainer][name]
    models = {"policy": inputs.policy(case.shape)}
    if trainer != "rloo":
        models["value_model"] = inputs.value_model(case.shape)
    start = {f"{part}.{key}": value for part, model in models.items() for key, value in model.named_parameters()}
    assert start.keys() == run.weights.keys()
    moves = {key: float((run.weights[key] - value.detach()).abs().max()) for key, value in start.items()}
    assert all(move > 0 for move in moves.values())
    assert np.median(list(moves.values())) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# every setting shows

ROLLOUT_ONLY = {
    "kl-coef": "advantages",
    "temperature": "logprobs",
    "missing-eos-penalty": "scores",
    "no-stop-token": "advantages",
    "whiten-rewards": "rewards",
    "gamma-lam": "returns",
    "k3": "kl",
    "rloo-k-4": "advantages",
    "normalize-reward": "scores",
    "normalize-advantage": "advantages",
    "reward-function": "scores",
}
"""Case -> what of the first rollout differs from that of `plain`."""
WEIGHTS = ["epochs-2", "mini-batches-2", "vf-coef"]
"""Cases with the first rollout of `plain` and other weights after it."""
PAIRS = {
    "no-stop-token-penalty": ("no-stop-token", "scores"),
    "whiten-rewards-penalty": ("whiten-rewards", "rewards"),
    "k3-kl-coef": ("k3", "rewards"),
    "k3-whiten-rewards": ("whiten-rewards-penalty", "rewards"),
    "reward-clip-range": ("normalize-reward", "scores"),
    "normalize-reward-penalty": ("normalize-reward", "scores"),
    "normalize-reward-token-level-kl": ("rloo-k-4", "scores"),
    "reward-function-penalty": ("reward-function", "scores"),
}


@pytest.mark.parametrize(
    ("trainer", "name", "base", "output"),
    [
        *((t, name, "plain", output) for name, output in ROLLOUT_ONLY.items() for t in CASES if name in CASES[t]),
        *((t, name, base, output) for name, (base, output) in PAIRS.items() for t in CASES if name in CASES[t]),
    ],
)
def test_setting_shows_in_the_rollout(trainer: str, name: str, base: str, output: str) -> None:
    one, other = (recorded(trainer, each).updates[0].rollout[output] for each in (name, base))
    assert differ(one, other)


@pytest.mark.parametrize(
    ("trainer", "name", "base"),
    [
        *((t, name, "plain") for name in WEIGHTS for t in CASES if name in CASES[t]),
        *((t, "cliprange", "epochs-2") for t in CASES),
        *((t, "data-ends", "accumulation-2") for t in ("ppov2", "ppo")),
        ("ppov2", "cliprange-value", "epochs-2"),
        ("ppo", "cliprange-value", "epochs-2"),
        ("ppo", "reference-copied", "epochs-2"),
        ("ppov2", "epochs-2-mini-batches-2", "mini-batches-2"),
        ("rloo", "epochs-2-mini-batches-2", "mini-batches-2"),
        ("ppo", "epochs-2-mini-batches-2", "mini-batches-2"),
    ],
)
def test_setting_shows_in_the_weights(trainer: str, name: str, base: str) -> None:
    one, other = recorded(trainer, name).weights, recorded(trainer, base).weights
    assert max(float((one[key] - other[key]).abs().max()) for key in one) > 1e-3


@pytest.mark.parametrize(
    ("trainer", "name"), [*((trainer, "rollout-batches") for trainer in CASES), ("rloo", "token-level-kl")]
)
def test_setting_acts_on_nothing(trainer: str, name: str) -> None:
    one, plain = recorded(trainer, name), recorded(trainer, "plain")
    for key, weight in one.weights.items():
        agree(weight, plain.weights[key])


# ---------------------------------------------------------------------------------------------------------------------
# what the releases compute, by plain formulas


@pytest.mark.parametrize("trainer", ["ppov2", "ppo"])
@pytest.mark.parametrize("name", ["plain", "no-stop-token", "stop-token-id", "missing-eos-penalty"])
def test_score_stands_after_the_end_token(trainer: str, name: str) -> None:
    run = recorded(trainer, name)
    for update in run.updates:
        rollout = update.rollout
        expected = -run.options["kl_coef"] * rollout["kl"]
        for row, last in enumerate(rollout["sequence_lengths"].tolist()):
            expected[row, min(last + 1, inputs.TOKENS - 1)] += rollout["scores"][row]
        agree(expected, rollout["rewards"])


@pytest.mark.parametrize(("trainer", "name"), [("ppov2", "plain"), ("ppo", "k3"), ("ppo", "gamma-lam")])
def test_advantages_are_whitened_without_the_position_of_the_score(trainer: str, name: str) -> None:
    run = recorded(trainer, name)
    gamma, lam = run.options["gamma"], run.options["lam"]
    for update in run.updates:
        rollout, kept = update.rollout, counted(update)
        plain = torch.zeros_like(rollout["rewards"])
        following, next_value = torch.zeros(8), torch.zeros(8)
        for t in reversed(range(inputs.TOKENS)):
            following = (
                rollout["rewards"][:, t] + gamma * next_value - rollout["values"][:, t] + gamma * lam * following
            )
            plain[:, t], next_value = following, rollout["values"][:, t]
        agree(plain + rollout["values"], rollout["returns"])
        whitened = (plain - plain[kept].mean()) / (plain[kept].var() + 1e-8).sqrt()
        agree(whitened.where(kept, 0.0), rollout["advantages"])


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", ["missing-eos-penalty", "no-stop-token-penalty", "stop-token-id"])
def test_penalty_asks_for_the_end_token_in_the_answer(trainer: str, name: str) -> None:
    run = recorded(trainer, name)
    lower = run.options["missing_eos_penalty"] or 0.0
    without = 0
    for update in run.updates:
        has_end = (update.rollout["postprocessed_responses"] == inputs.END).any(1)
        agree(update.rollout["raw_scores"] - lower * ~has_end, update.rollout["scores"])
        without += int((~has_end).sum())
    assert without > 0


@pytest.mark.parametrize(
    ("trainer", "name", "steps"),
    [
        ("ppo", "plain", [1]),
        ("ppo", "accumulation-2", [2]),
        ("ppo", "data-ends", [1, 2]),
        ("ppo", "mini-batches-2", [1, 2]),
        ("ppo", "epochs-2-mini-batches-2", [1, 2, 3, 4]),
        ("ppo", "epochs-2-mini-batches-2-accumulation-2", [2, 4]),  # as with one mini-batch
        ("ppov2", "data-ends", [1, 2]),
        ("ppov2", "epochs-2-mini-batches-2-accumulation-2", [2, 4, 6, 8]),
        ("rloo", "data-ends", [1, 2]),
        ("rloo", "mini-batches-2", [1, 2]),
    ],
)
def test_when_the_optimizer_steps(trainer: str, name: str, steps: list[int]) -> None:
    assert [update.steps_after for update in recorded(trainer, name).updates] == [steps, steps]


@pytest.mark.parametrize(
    ("name", "too_small"),
    [("epochs-2-mini-batches-2", 1), ("accumulation-2", 1), ("epochs-2-mini-batches-2-accumulation-2", 2)],
)
def test_logged_losses_of_ppo_divide_by_empty_slots(name: str, too_small: int) -> None:
    for update in recorded("ppo", name).updates:
        assert update.log["loss/policy_avg"] == pytest.approx(
            float(update.losses["pg_loss"].mean()) / too_small, rel=1e-4
        )


@pytest.mark.parametrize("name", ["plain", "token-level-kl", "normalize-reward", "rloo-k-4", "normalize-advantage"])
def test_rloo_advantages(name: str) -> None:
    run = recorded("rloo", name)
    for update in run.updates:
        rollout, scores = update.rollout, update.rollout["raw_scores"]
        if run.options["normalize_reward"]:
            scores = (scores - scores.mean()) / (scores.std() + 1e-8)
        totals = (scores - run.options["kl_coef"] * rollout["kl"].sum(1)).reshape(copies(run), -1)
        others = (totals.sum(0) - totals) / (copies(run) - 1)
        advantages = (totals - others).flatten()
        if run.options["normalize_advantage"]:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        agree(advantages, rollout["advantages"])


def test_reward_function_is_given_prompt_and_answer_without_special_tokens() -> None:
    run, number = recorded("rloo", "reward-function"), 0
    for update in run.updates:
        ids = update.rollout["query_responses"][:, : update.rollout["context_length"]]
        whole = torch.cat([ids, update.rollout["postprocessed_responses"]], dim=1)
        for row in whole.tolist():
            assert run.texts[number] == " ".join(f"w{token}" for token in row if token >= inputs.FIRST)
            number += 1
        texts = run.texts[number - 8 : number]
        agree(torch.tensor(inputs.reward_function(texts)), update.rollout["raw_scores"])
    assert number == len(run.texts) == 16


def entropy_of(case: OnPolicyCase, update: Update, temperature: float) -> torch.Tensor:
    """Of every position of the answers of the first update, [B, R]."""
    ids, length = update.rollout["query_responses"], int(update.rollout["context_length"])
    logits = hidden_of(inputs.policy(case.shape), ids).logits[:, length - 1 : -1] / (temperature + 1e-7)
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("trainer", TRAINERS)
@torch.no_grad()
def test_logged_numbers_are_means_over_padding(trainer: str) -> None:
    run = recorded(trainer, "plain")
    update = run.updates[0]
    entropy = entropy_of(CASES[trainer]["plain"], update, run.options["temperature"])
    assert update.log["policy/entropy_avg"] == pytest.approx(float(entropy.mean()), rel=1e-4)
    assert update.log["policy/entropy_avg"] != pytest.approx(float(entropy[counted(update)].mean()), rel=1e-3)
    rollout = update.rollout
    # after the end a log-prob is the number 1, and is summed
    assert update.log["objective/entropy"] == pytest.approx(float(-rollout["logprobs"].sum(1).mean()), rel=1e-4)
    real = -(rollout["logprobs"] * counted(update)).sum(1).mean()
    assert update.log["objective/entropy"] != pytest.approx(float(real), rel=1e-2)
