"""What a step costs in arithmetic, and how long that arithmetic takes on this machine at best.

A multiply-add counts 2. With S tokens of a sample, R response tokens of the batch and P weights in products of the
layers, a forward pass takes 2 P S + 2 L D S² per sample (causal attention counted half), and the head 2 D V R. A
backward pass takes the same for the hidden states, and once more for the attention and the weights that train
(Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1). Where a query runs once for several samples, each
query of the batch is counted once, as if all samples were one mini-batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_step.models.critic import PolicyWithCritic
from trl_step.models.inner_model import decoder_backbone, output_embedding, plain_model
from trl_step.trainer.batches.rollout import Rollout

RATE_REPEATS = 5


class StepCost(NamedTuple):
    """The cost of one step, and its distance from the machine's limit."""

    flops: float
    """floating-point operations that the algorithm needs"""
    seconds: float
    """what the step took"""
    tokens: int
    """query and response tokens of the batch"""
    machine_flops_per_second: float
    """best rate of a matrix product at the model's own shapes, measured once"""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def limit_seconds(self) -> float:
        """What the step would take if it were nothing but matrix products."""
        return self.flops / self.machine_flops_per_second

    @property
    def ratio_to_limit(self) -> float:
        """1 is the machine's limit."""
        return self.seconds / self.limit_seconds


class StepFacts(NamedTuple):
    """What the cost of a step follows from."""

    lengths: list[int]
    """tokens of each sample"""
    repeated: list[int]
    """tokens of each query that an earlier sample has, and that need not run again"""
    response_tokens: int
    epochs: int
    seconds: float
    frozen_layers: int
    reference_shares: bool

    @classmethod
    def of(cls, rollout: Rollout, epochs: int, seconds: float) -> StepFacts:
        lengths = [
            len(query) + len(response) for query, response in zip(rollout.queries, rollout.responses, strict=True)
        ]
        trunk, repeated = rollout.trunk, []
        if rollout.query_numbers is not None:
            first = set(np.unique(rollout.query_numbers, return_index=True)[1].tolist())
            repeated = [len(query) for i, query in enumerate(rollout.queries) if i not in first]
        return cls(
            lengths,
            repeated,
            sum(len(response) for response in rollout.responses),
            epochs,
            seconds,
            0 if trunk is None else trunk.depth,
            trunk is not None and trunk.serves_reference,
        )


def cost_of(facts: StepFacts, policy: Any, mini_batch_size: int) -> StepCost:
    """The cost of a step of `policy`, a wrapped language model, with that of a separate critic."""
    model = policy.pretrained_model
    weight: Any = output_embedding(model).weight
    rows = max(mini_batch_size * sum(facts.lengths) // len(facts.lengths), 1)
    flops = step_flops(
        model,
        facts.lengths,
        facts.response_tokens,
        facts.epochs,
        facts.reference_shares,
        facts.frozen_layers,
        facts.repeated,
    )
    if isinstance(policy, PolicyWithCritic):
        flops += critic_flops(policy.critic.pretrained_model, facts.lengths, facts.epochs, facts.repeated)
    rate = matrix_rate(weight.device, weight.dtype, rows, weight.shape[1])
    return StepCost(flops, facts.seconds, sum(facts.lengths), rate)


class _Products(NamedTuple):
    """Weights in matrix products."""

    frozen: int
    """below the cut: run once a step"""
    above: int
    trained: int
    """of those above"""
    head: int
    head_trained: bool


def step_flops(
    model: Any,
    lengths: Sequence[int],
    response_tokens: int,
    epochs: int,
    reference_shares: bool,
    depth: int = 0,
    repeated: Sequence[int] = (),
) -> float:
    """Operations of one step.

    Args:
        model: the policy, a transformers model or a PeftModel around one
        lengths: tokens of each sample, query and response together
        response_tokens: of the whole batch
        epochs: PPO epochs that ran
        reference_shares: the reference takes the frozen bottom's hidden states from the policy
        depth: layers of the frozen bottom that ran once
        repeated: tokens of queries that do not run again
    """
    products = _count(model, depth)
    tokens, attention = sum(lengths) - sum(repeated), _attention(model, lengths, repeated)
    share = products.frozen / max(products.frozen + products.above, 1)
    below = 2 * products.frozen * tokens + share * attention
    above, above_attention = 2 * products.above * tokens, (1 - share) * attention
    head = 2 * products.head * response_tokens
    rollout = (1 if reference_shares else 2) * below + 2 * (above + above_attention + head)
    # forward; backward of the hidden states, of the trained weights, and of both operands of the attention
    epoch = 2 * above + 2 * products.trained * tokens + 3 * above_attention
    return rollout + epochs * (epoch + (3 if products.head_trained else 2) * head)


def critic_flops(model: Any, lengths: Sequence[int], epochs: int, repeated: Sequence[int] = ()) -> float:
    """Operations of a separate critic in one step: it runs once before the updates, and has no output embedding.

    Args:
        model: a transformers model or a PeftModel around one
        lengths, epochs, repeated: as in `step_flops`
    """
    products = _products(plain_model(model).base_model, 0, set())
    tokens, attention = sum(lengths) - sum(repeated), _attention(model, lengths, repeated)
    forward = 2 * products.above * tokens
    return forward + attention + epochs * (2 * forward + 2 * products.trained * tokens + 3 * attention)


def _attention(model: Any, lengths: Sequence[int], repeated: Sequence[int]) -> int:
    """Of a forward pass."""
    config = plain_model(model).config.get_text_config(decoder=True)
    squares = sum(n * n for n in lengths) - sum(n * n for n in repeated)
    return 2 * config.num_hidden_layers * config.hidden_size * squares


def _count(model: Any, depth: int) -> _Products:
    head: Any = output_embedding(model).weight
    backbone = decoder_backbone(model)
    if plain_model(model).config.is_encoder_decoder or backbone is None:
        backbone = plain_model(model)
    return _products(backbone, depth, {id(head)})._replace(head=head.numel(), head_trained=head.requires_grad)


def _products(backbone: torch.nn.Module, depth: int, heads: set[int]) -> _Products:
    """The matrices of a model without its output embedding, whose weight is among the `id`s in `heads`."""
    embeddings = {id(m.weight) for m in backbone.modules() if isinstance(m, torch.nn.Embedding)} | heads
    frozen = above = trained = 0
    for name, parameter in backbone.named_parameters():
        if parameter.dim() < 2 or id(parameter) in embeddings:
            continue
        number = next((int(part) for part in name.split(".") if part.isdigit()), depth)
        if number < depth:
            frozen += parameter.numel()
        else:
            above += parameter.numel()
            trained += parameter.numel() if parameter.requires_grad else 0
    return _Products(frozen, above, trained, 0, False)


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> float:
    """Operations per second of the best of some [rows, width] x [width, 4 width] products; measured once."""
    left = torch.randn(rows, width, device=device, dtype=dtype)
    right = torch.randn(width, 4 * width, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(RATE_REPEATS + 1):
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * width * 4 * width / best


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
