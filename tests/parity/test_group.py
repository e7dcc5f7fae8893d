"""Group advantages, policy losses, importance weights and their gradients beside those of two other releases.

RLOO of TRL 0.15.2, GRPO of TRL 1.16 (`group_recording.py`). Each number here comes out of `trl_step`'s own functions,
from scores and log-probs; where a release does something else, a test states by what formula it differs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch

from tests.parity.group_recording import GroupCase, group_case, group_cases
from trl_step.algorithms.advantages.group import grpo_advantages, rloo_advantages
from trl_step.algorithms.importance import importance_weights
from trl_step.algorithms.kl import kl_penalty
from trl_step.algorithms.losses.policy import (
    Clip,
    cispo_losses,
    clipped_policy_losses,
    gspo_losses,
    sapo_losses,
    sequence_clip_losses,
)
from trl_step.algorithms.losses.tokens import TokenLosses, token_weights
from trl_step.algorithms.objective import Minibatch, Objective, minibatch_weights

RTOL, OF_LARGEST = 2e-6, 5e-7
"""Some roundings of float32 (6e-8): of a number; of the largest of its array, or of the terms that a sum is made of."""

SCALES = {"group": "std", "batch": "batch", "none": "none"}
NORMALIZATIONS = {
    "grpo": "samples",
    "sapo": "samples",
    "bnpo": "mini_batch",
    "dr_grpo": "constant",
    "dapo": "tokens",
    "cispo": "tokens",
}
CORRECTIONS = {"token_truncate": "tis", "token_mask": "icepop"}
CORRECTED_KL = ("grpo-beta-corrected", "dapo-beta-corrected")
DIFFERENT = (*CORRECTED_KL, "grpo-entropy", "dapo-two-updates")
"""Cases whose loss the release computes by another formula; each has a test that states it."""
GRPO = list(group_cases("grpo"))
RLOO = list(group_cases("rloo"))


def name_of(case: GroupCase) -> str:
    return case.name


def agree(actual: torch.Tensor, recorded: torch.Tensor, terms: float = 0.0) -> None:
    """Every element, to float32 rounding; nothing is scaled or left out.

    `terms`: of a sum, the sum of its terms' sizes, where they cancel to a smaller number.
    """
    largest = max(float(recorded.abs().max()), terms)
    torch.testing.assert_close(actual, recorded, rtol=RTOL, atol=OF_LARGEST * largest)


def disagree(actual: torch.Tensor, recorded: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        agree(actual, recorded)


class Replay(NamedTuple):
    loss: torch.Tensor
    grad_logprobs: torch.Tensor
    grad_entropies: torch.Tensor | None
    slope: torch.Tensor
    """what the fused head would be given, [B, T]"""
    terms: float
    """sum of the sizes of all weighted token losses"""


def replay(
    objective: Objective, case: GroupCase, advantages: torch.Tensor, normalization: str, importance: Any = None
) -> Replay:
    """One backward batch of `case` through `objective`, in the parts that the release made of it."""
    options, inputs = case.options, case.inputs
    mask = case.outputs.get("mask", inputs["mask"])
    logprobs = inputs["logprobs"].clone().requires_grad_()
    entropies = inputs["entropies"].clone().requires_grad_()
    parts = list(case.outputs.get("parts", torch.arange(len(mask)).unsqueeze(0)))
    old = inputs["old_logprobs"] if options.get("old_logprobs", True) else inputs["logprobs"]
    sizes = torch.stack([torch.stack([mask[rows].sum(), torch.tensor(len(rows))]) for rows in parts]).double()
    factors = minibatch_weights(sizes, sizes, 1, normalization)
    loss, slope, terms = torch.zeros(()), torch.zeros_like(inputs["logprobs"]), 0.0
    for rows, factor in zip(parts, factors, strict=True):
        batch = Minibatch(
            mask=mask[rows],
            weights=token_weights(mask[rows], normalization, options.get("max_completion_length")),
            old_logprobs=old[rows],
            advantages=advantages[rows].unsqueeze(1).expand(-1, mask.shape[1]),
            ref_logprobs=inputs["ref_logprobs"][rows],
            importance=None if importance is None else importance[rows].expand(-1, mask.shape[1]),
        )
        found = objective.evaluate(batch, logprobs=logprobs[rows], entropy=entropies[rows], vpreds=None)
        loss = loss + factor * found.policy
        slope[rows] = factor * objective.slope(inputs["logprobs"][rows], batch)
        sizes_of_terms = objective.token_losses(logprobs[rows], batch)[0].detach().abs()
        terms += factor * float((sizes_of_terms * batch.weights).sum())
    loss.backward()
    return Replay(loss.detach(), logprobs.grad, entropies.grad, slope, terms)  # type: ignore[arg-type]


def agrees(replayed: Replay, case: GroupCase) -> None:
    agree(replayed.loss, torch.tensor(case.loss), replayed.terms)
    agree(replayed.grad_logprobs, case.outputs["grad_logprobs"])
    agree(replayed.slope, case.outputs["grad_logprobs"])


# ---------------------------------------------------------------------------------------------------------------------
# GRPO of TRL 1.16


def grpo_objective(options: dict[str, Any]) -> Objective:
    """`trl_step`'s objective with the settings of that trainer."""
    low = options["epsilon"]
    high = low if options["epsilon_high"] is None else options["epsilon_high"]

    def policy_losses(logprobs: torch.Tensor, batch: Minibatch) -> TokenLosses:
        given = (logprobs, batch.old_logprobs, batch.advantages)
        if options["loss_type"] == "cispo":
            return cispo_losses(*given, high)  # the release takes its upper epsilon for the bound itself
        if options["loss_type"] == "sapo":
            return sapo_losses(*given, (options["sapo_temperature_pos"], options["sapo_temperature_neg"]))
        if options["importance_sampling_level"] == "sequence":
            return gspo_losses(*given, batch.mask, Clip(low, high))
        return clipped_policy_losses(*given, Clip(low, high, options["delta"]))

    return Objective(
        policy_losses,
        None,
        0.0,
        couples_tokens=options["importance_sampling_level"] == "sequence",
        kl_coef=options["beta"],
        entropy_coef=options["entropy_coef"],
    )


def grpo_replay(case: GroupCase, **changes: Any) -> Replay:
    """From scores to the gradient; `changes` of the arguments of `replay`."""
    options, inputs = case.options, case.inputs
    importance = case.outputs.get("importance")
    if options["correction"] in CORRECTIONS:
        importance = grpo_importance(case)
    arguments = {
        "objective": grpo_objective(options),
        "advantages": grpo_advantages(inputs["scores"], inputs["groups"], SCALES[options["scale_rewards"]]),
        "normalization": NORMALIZATIONS[options["loss_type"]],
        "importance": importance,
    }
    return replay(case=case, **{**arguments, **changes})


def grpo_importance(case: GroupCase) -> torch.Tensor:
    """The weights of the corrections that both have, with the bounds of the case."""
    options, inputs = case.options, case.inputs
    bounds = (options["clip_min"] or 0.0, options["clip_max"])
    given = inputs["old_logprobs"], inputs["sampling_logprobs"], case.outputs["mask"]
    return importance_weights(*given, CORRECTIONS[options["correction"]], bounds)


@pytest.mark.parametrize("case", GRPO, ids=name_of)
def test_grpo_advantages(case: GroupCase) -> None:
    given = case.inputs["scores"], case.inputs["groups"]
    actual = grpo_advantages(*given, SCALES[case.options["scale_rewards"]])
    agree(actual, case.outputs["advantages"])


@pytest.mark.parametrize("case", [case for case in GRPO if case.name not in DIFFERENT], ids=name_of)
def test_grpo_loss_and_gradient(case: GroupCase) -> None:
    replayed = grpo_replay(case)
    agrees(replayed, case)
    if "grad_entropies" in case.outputs:
        agree(replayed.grad_entropies, case.outputs["grad_entropies"])  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [case for case in GRPO if case.options["correction"] in CORRECTIONS], ids=name_of)
def test_grpo_importance_weights_of_tokens(case: GroupCase) -> None:
    mask = case.outputs["mask"].bool()
    actual = grpo_importance(case)
    agree(actual[mask], case.outputs["importance"][mask])
    # outside the mask the release has exp(0) = 1, which its masked mean leaves out, and trl_step 0
    assert (case.outputs["importance"][~mask] == 1).all()
    assert (actual[~mask] == 0).all()


# --- what differs


@pytest.mark.parametrize("name", ["grpo-sequence_mask", "grpo-sequence_mask-both", "dapo-sequence_mask-beta"])
def test_sequence_mask_of_grpo_also_multiplies(name: str) -> None:
    """The release: w of the sample where it is within the bounds, else 0. Here: 1 within the bounds, else 0."""
    case = group_case("grpo", name)
    mask = case.outputs["mask"]
    old, sampled = case.inputs["old_logprobs"], case.inputs["sampling_logprobs"]
    bounds = (case.options["clip_min"] or 0.0, case.options["clip_max"])
    kept = importance_weights(old, sampled, mask, "sequence_mask", bounds)
    product = ((old - sampled) * mask).sum(1, keepdim=True).exp()
    agree(kept[:, :1] * product, case.outputs["importance"])
    assert 0 < int(kept[:, 0].sum()) < len(kept)
    disagree(grpo_replay(case, importance=kept).grad_logprobs, case.outputs["grad_logprobs"])


@pytest.mark.parametrize("name", CORRECTED_KL)
def test_default_kl_of_grpo_is_weighted_by_the_ratio(name: str) -> None:
    """`use_bias_correction_kl`, on by default: beta k3 r, differentiated through both. Here: beta k3."""
    case = group_case("grpo", name)
    disagree(grpo_replay(case).grad_logprobs, case.outputs["grad_logprobs"])

    plain = grpo_objective({**case.options, "beta": 0.0})

    def policy_losses(logprobs: torch.Tensor, batch: Minibatch) -> TokenLosses:
        own = plain.policy_losses(logprobs, batch)
        ratio = (logprobs - batch.old_logprobs).exp()
        return own._replace(
            losses=own.losses + case.options["beta"] * kl_penalty(logprobs, batch.ref_logprobs, "k3") * ratio
        )

    agrees(grpo_replay(case, objective=plain._replace(policy_losses=policy_losses)), case)


def test_entropy_bonus_of_grpo_is_a_mean_over_tokens() -> None:
    """The release: a mean over counted tokens whatever the loss type. Here: the mean of the normalization in use."""
    case = group_case("grpo", "grpo-entropy")
    mask = case.outputs["mask"]
    agree(case.outputs["grad_entropies"], -case.options["entropy_coef"] * mask / mask.sum())
    replayed = grpo_replay(case)
    agree(replayed.grad_logprobs, case.outputs["grad_logprobs"])
    weights = token_weights(mask, "samples")
    agree(replayed.grad_entropies, -case.options["entropy_coef"] * weights)  # type: ignore[arg-type]
    disagree(replayed.grad_entropies, case.outputs["grad_entropies"])  # type: ignore[arg-type]


def test_tokens_of_grpo_are_those_of_all_updates() -> None:
    """Two updates of one batch of answers (16 samples in 4 parts, 2 an update). The release divides the sum of an
    update by (tokens of all samples) * 2 / 4. Here: by the tokens of that update."""
    case = group_case("grpo", "dapo-two-updates")
    mask, parts = case.outputs["mask"], case.outputs["parts"]
    of_update = []
    for update in (parts[:2], parts[2:]):
        alone = dataclasses.replace(case, outputs={**case.outputs, "parts": update})
        gradient, rows = grpo_replay(alone).grad_logprobs, update.flatten()
        tokens = float(mask[rows].sum())
        assert tokens != float(mask.sum() / 2)
        agree(gradient[rows] * tokens / float(mask.sum() / 2), case.outputs["grad_logprobs"][rows])
        disagree(gradient[rows], case.outputs["grad_logprobs"][rows])
        of_update.append(gradient)
    assert not (of_update[0].bool() & of_update[1].bool()).any()


# --- the comparison sees what it should


@pytest.mark.parametrize("ddof_or_eps", ["ddof 0", "eps 1e-6"])
@pytest.mark.parametrize("name", ["scale-group-pairs", "scale-group-fours"])
def test_another_deviation_is_seen(name: str, ddof_or_eps: str) -> None:
    case = group_case("grpo", name)
    groups = case.inputs["groups"]
    actual = torch.zeros_like(case.inputs["scores"])
    for group in groups.unique():
        scores = case.inputs["scores"][groups == group]
        std = scores.std(correction=0 if ddof_or_eps == "ddof 0" else 1)
        actual[groups == group] = (scores - scores.mean()) / (std + (1e-4 if ddof_or_eps == "ddof 0" else 1e-6))
    disagree(actual, case.outputs["advantages"])


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "cispo"])
def test_another_normalization_is_seen(loss: str) -> None:
    case = group_case("grpo", f"{loss}-accumulation")
    for normalization in {"samples", "tokens", "constant", "mini_batch"} - {NORMALIZATIONS[loss]}:
        replayed = grpo_replay(case, normalization=normalization)
        with pytest.raises(AssertionError):
            agree(replayed.loss, torch.tensor(case.loss), replayed.terms)
        disagree(replayed.grad_logprobs, case.outputs["grad_logprobs"])


def test_an_error_of_one_in_100_000_is_seen() -> None:
    case = group_case("grpo", "dapo")
    replayed = grpo_replay(case)
    agrees(replayed, case)
    for wrong in (
        replayed._replace(loss=replayed.loss + 1e-5 * replayed.terms),
        replayed._replace(grad_logprobs=replayed.grad_logprobs * (1 + 1e-5)),
        replayed._replace(slope=replayed.slope + 1e-5 * replayed.slope.abs().max()),
    ):
        with pytest.raises(AssertionError):
            agrees(wrong, case)


# ---------------------------------------------------------------------------------------------------------------------
# RLOO of TRL 0.15.2


def rloo_totals(case: GroupCase, scores: torch.Tensor) -> torch.Tensor:
    """R = score - kl_coef * sum of the KL at the start over counted tokens, [B]."""
    kl = kl_penalty(case.inputs["old_logprobs"], case.inputs["ref_logprobs"], "kl") * case.inputs["mask"]
    return scores - case.options["kl_coef"] * kl.sum(1)


def rloo_advantages_of(case: GroupCase) -> torch.Tensor:
    """From scores and log-probs; a normalization over the batch is the user's own there."""
    advantages = rloo_advantages(rloo_totals(case, rloo_scores(case)), case.inputs["groups"])
    if case.options["normalize_advantage"]:
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return advantages


def rloo_objective(cliprange: float) -> Objective:
    def policy_losses(logprobs: torch.Tensor, batch: Minibatch) -> TokenLosses:
        return sequence_clip_losses(logprobs, batch.old_logprobs, batch.advantages, batch.mask, Clip(cliprange))

    return Objective(policy_losses, None, 0.0, couples_tokens=True)


def rloo_scores(case: GroupCase) -> torch.Tensor:
    """The scores as that trainer shapes them: per batch of one process, which no setting here does."""
    scores = case.inputs["scores"]
    if case.options["normalize_reward"]:
        scores = (scores - scores.mean()) / (scores.std() + 1e-8)
        scores = scores.clamp(-case.options["reward_clip_range"], case.options["reward_clip_range"])
    return scores


@pytest.mark.parametrize("case", RLOO, ids=name_of)
def test_rloo_totals_and_advantages(case: GroupCase) -> None:
    scores = rloo_scores(case)
    agree(scores, case.outputs["scores"])
    totals = rloo_totals(case, scores)
    agree(totals, case.outputs["totals"])
    agree(rloo_advantages_of(case), case.outputs["advantages"])
    if case.options["normalize_advantage"]:
        disagree(rloo_advantages(totals, case.inputs["groups"]), case.outputs["advantages"])


@pytest.mark.parametrize("case", RLOO, ids=name_of)
def test_rloo_loss_and_gradient(case: GroupCase) -> None:
    objective = rloo_objective(case.options["cliprange"])
    agrees(replay(objective, case, rloo_advantages_of(case), "samples"), case)


def test_rows_in_another_order_have_the_advantages_of_their_groups() -> None:
    """The release reads groups off a layout of rounds; here they go by number."""
    case = group_case("rloo", "k4")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    totals = rloo_totals(case, case.inputs["scores"])
    actual = rloo_advantages(totals[order], case.inputs["groups"][order])
    agree(actual, case.outputs["advantages"][order])
    consecutive = torch.arange(4).repeat_interleave(4)
    disagree(rloo_advantages(totals, consecutive), case.outputs["advantages"])


def test_mean_over_tokens_is_not_that_of_rloo() -> None:
    case = group_case("rloo", "k2")
    replayed = replay(rloo_objective(0.2), case, rloo_advantages_of(case), "tokens")
    with pytest.raises(AssertionError):
        agree(replayed.loss, torch.tensor(case.loss), replayed.terms)
    disagree(replayed.grad_logprobs, case.outputs["grad_logprobs"])
