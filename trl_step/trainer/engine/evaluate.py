"""Stage 3 of a step: what policy and reference say about the responses, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from trl_step.models.sharding import gathered
from trl_step.models.shortcuts.frozen_trunk import FrozenTrunk
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.models.shortcuts.training_mode import one_attention_kernel
from trl_step.trainer.batches.padding import mini_batches, spread
from trl_step.trainer.batches.positions import Places
from trl_step.trainer.batches.rollout import RolledForward
from trl_step.trainer.engine.sweeps import paired_sweep, sweep

if TYPE_CHECKING:
    from trl_step.trainer.ppo_trainer import PPOTrainer

Tokens = list[torch.Tensor]


class Given(NamedTuple):
    """What the caller already has, each a list of [R_i] float32; None: to be computed."""

    old_logprobs: Tokens | None = None
    ref_logprobs: Tokens | None = None
    values: Tokens | None = None


def roll_forward(
    trainer: PPOTrainer, queries: Tokens, responses: Tokens, response_masks: Tokens | None, given: Given
) -> RolledForward:
    """Log-probs of policy and reference and values [B, T], with what the subclass's hooks and `kl_penalty` need."""
    inputs = dict(trainer.prepare_model_inputs(queries, responses))
    full = trainer.config.kl_penalty == "full"
    own_penalty = full and trainer._overrides("compute_rewards", "_kl_penalty")
    with torch.no_grad(), one_attention_kernel(trainer.model), trainer._forward.buffers.kept():
        if own_penalty or trainer._overrides("batched_forward_pass"):
            rolled = _by_hook(trainer, queries, responses, inputs, response_masks)
        else:
            masks = trainer._layout.response_positions(queries, responses, inputs, response_masks)
            places = trainer._layout.places(inputs, masks)
            with eval_mode(trainer.model), trainer.accelerator.autocast():
                rolled = (_side_by_side if full else _one_by_one)(trainer, inputs, masks, places, given)
        positions = trainer._layout.response_positions(queries, responses, inputs)
        return _with_given(rolled, given, positions)


def _first_mini_batch(trainer: PPOTrainer, count: int) -> np.ndarray:
    """The samples that are trained first; NumPy's stream, which draws them, stays where it is.

    A product of other sizes rounds otherwise. These samples go through the no-grad passes together, as they will in
    training, so that their ratio is exactly 1 and not 1 to seven digits.
    """
    state = np.random.get_state()
    order = np.random.permutation(count)
    np.random.set_state(state)
    return next(mini_batches(order, trainer.config.backward_batch_size, trainer.config.mini_batch_size))[0]


def _by_hook(
    trainer: PPOTrainer, queries: Tokens, responses: Tokens, inputs: dict[str, torch.Tensor], masks: Tokens | None
) -> RolledForward:
    """Through `batched_forward_pass`, which a subclass may have replaced; all log-probs [B, T, V] only for `full`."""
    full = trainer.config.kl_penalty == "full"

    def ask(model: Any) -> Any:
        with gathered(trainer.accelerator.unwrap_model(model)):
            return trainer.batched_forward_pass(
                model, queries, responses, inputs, return_logits=full, response_masks=masks
            )

    def distribution(logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits.float() / trainer.config.temperature, dim=-1)

    logprobs, logits, values, counted = ask(trainer.model)
    with trainer.optional_peft_ctx():
        ref_logprobs, ref_logits, _, _ = ask(trainer._reference)
    return RolledForward(
        inputs,
        trainer._layout.places(inputs, counted),
        counted,
        logprobs.float(),
        values.float(),
        ref_logprobs.float(),
        distributions=(distribution(logits), distribution(ref_logits)) if full else None,
    )


def _one_by_one(
    trainer: PPOTrainer, inputs: dict[str, torch.Tensor], masks: torch.Tensor, places: Places, given: Given
) -> RolledForward:
    """Policy, then reference; each only if the caller does not already have its numbers."""
    tools, size = (trainer._forward, trainer._forward_size), trainer.config.mini_batch_size
    trunk, first = _frozen_trunk(trainer), _first_mini_batch(trainer, len(masks))
    logprobs = ref_logprobs = values = torch.zeros(masks.shape, device=masks.device)
    policy, reference = _unwrapped(trainer)
    if given.old_logprobs is None or given.values is None:
        with gathered(policy):
            logprobs, _, values = sweep(*tools, trainer.model, inputs, places, size, trunk.policy, first)
    if given.ref_logprobs is None:
        with gathered(reference), trainer.optional_peft_ctx():
            ref_logprobs, _, _ = sweep(*tools, trainer._reference, inputs, places, size, trunk.reference, first)
    return RolledForward(inputs, places, masks, logprobs, values, ref_logprobs, trunk=trunk)


def _side_by_side(
    trainer: PPOTrainer, inputs: dict[str, torch.Tensor], masks: torch.Tensor, places: Places, given: Given
) -> RolledForward:
    """Both models mini-batch by mini-batch, for the exact divergence; it needs both, whatever the caller has."""
    trunk = _frozen_trunk(trainer)
    policy, reference = _unwrapped(trainer)
    with gathered(policy), gathered(reference):
        outputs = paired_sweep(
            trainer._forward,
            trainer._forward_size,
            trainer.model,
            trainer._reference,
            trainer.optional_peft_ctx,
            inputs,
            places,
            trainer.config.mini_batch_size,
            trunk,
            _first_mini_batch(trainer, len(masks)),
        )
    return RolledForward(
        inputs,
        places,
        masks,
        outputs.logprobs,
        outputs.values,
        outputs.ref_logprobs,
        divergence=outputs.divergence,
        trunk=trunk,
    )


def _frozen_trunk(trainer: PPOTrainer) -> FrozenTrunk:
    policy, reference = _unwrapped(trainer)
    return FrozenTrunk(policy.pretrained_model, reference.pretrained_model, trainer.optional_peft_ctx)


def _unwrapped(trainer: PPOTrainer) -> tuple[Any, Any]:
    return trainer.accelerator.unwrap_model(trainer.model), trainer.accelerator.unwrap_model(trainer._reference)


def _with_given(rolled: RolledForward, given: Given, positions: torch.Tensor) -> RolledForward:
    """Put what the caller has at the response's positions [B, T]."""
    fields = {"logprobs": given.old_logprobs, "ref_logprobs": given.ref_logprobs, "values": given.values}
    counted = rolled.masks.bool()
    replaced: Any = {
        name: torch.where(counted, spread(tokens, positions), 0.0)
        for name, tokens in fields.items()
        if tokens is not None
    }
    return rolled._replace(**replaced)
