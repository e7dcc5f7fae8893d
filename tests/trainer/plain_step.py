"""One update in plain loops over samples and tokens, through full logits: what every fast step is compared with.

Nothing of the library's maths is used here but its models.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch

from tests.tiny import tokenizer
from trl_step import PPOConfig, PPOTrainer


class Samples(NamedTuple):
    queries: list[torch.Tensor]
    responses: list[torch.Tensor]
    scores: list[torch.Tensor]
    masks: list[torch.Tensor]
    baselines: list[float]
    noise: list[torch.Tensor]
    """how far the log-probs at the start of the step are from the policy's, so that ratios are not 1"""
    sampler: list[torch.Tensor]
    """how far the sampler's are from those"""

    def take(self, order: list[int]) -> Samples:
        return Samples(*([items[i] for i in order] for items in self))


def samples(seed: int = 1, decoder_start: int | None = None) -> Samples:
    """Eight answers to three queries, in groups of three, two and three that lie in any order; some tokens masked."""
    stream = torch.Generator().manual_seed(seed)

    def ids(n: int) -> torch.Tensor:
        return torch.randint(3, 60, (n,), generator=stream)

    prompts = [ids(4), ids(6), ids(3)]
    queries = [prompts[i] for i in (0, 1, 0, 2, 1, 0, 2, 2)]
    responses = [ids(n) for n in (5, 3, 7, 2, 4, 6, 8, 1)]
    masks = [torch.ones_like(response) for response in responses]
    masks[2][2] = masks[0][-1] = 0
    masks[5][1:3] = 0
    masks[6][4] = 0
    scores = [torch.tensor(x) for x in (1.0, -0.5, 0.25, 0.0, 0.75, -1.0, 0.5, 2.0)]
    baselines = [0.5, -0.25, 0.5, 0.1, -0.25, 0.5, 0.1, 0.1]
    noise = [0.15 * torch.randn(len(response), generator=stream) for response in responses]
    sampler = [0.4 * torch.randn(len(response), generator=stream) for response in responses]
    if decoder_start is not None:
        responses = [torch.cat((torch.tensor([decoder_start]), response)) for response in responses]
        masks = [torch.cat((mask[:1], mask)) for mask in masks]
    return Samples(queries, responses, scores, masks, baselines, noise, sampler)


class Said(NamedTuple):
    """What a model says about the tokens of one response, each [R]."""

    logprobs: torch.Tensor
    entropies: torch.Tensor
    values: Any


def ask(model: Any, query: torch.Tensor, response: torch.Tensor, temperature: float) -> Said:
    """Through full logits, with gradients if they are on. A decoder's start token is not predicted."""
    if getattr(model, "is_encoder_decoder", False) or getattr(model.config, "is_encoder_decoder", False):
        out = model(input_ids=query[None], decoder_input_ids=response[None])
        place, labels = slice(0, -1), response[1:]
    else:
        out = model(input_ids=torch.cat((query, response))[None])
        place, labels = slice(len(query) - 1, -1), response
    logits, values = (out[0], out[2]) if isinstance(out, tuple) else (out.logits, None)
    log_p = (logits[0, place].float() / temperature).log_softmax(dim=-1)
    entropies = -(log_p.exp() * log_p).sum(dim=-1)
    return Said(log_p[torch.arange(len(labels)), labels], entropies, None if values is None else values[0, place])


class Known(NamedTuple):
    """Of each sample, before the update, on its predicted tokens."""

    old: list[torch.Tensor]
    sampler: list[torch.Tensor]
    ref: list[torch.Tensor]
    values: list[torch.Tensor]
    masks: list[torch.Tensor]


@torch.no_grad()
def known(model: Any, reference: Any, batch: Samples, config: PPOConfig) -> Known:
    found: list[list[torch.Tensor]] = [[], [], [], [], []]
    for query, response, mask, noise, sampler in zip(
        batch.queries, batch.responses, batch.masks, batch.noise, batch.sampler, strict=True
    ):
        said = ask(model, query, response, config.temperature)
        old = said.logprobs + noise
        own = (old, old + sampler, ask(reference, query, response, config.temperature).logprobs,
               torch.zeros_like(old) if said.values is None else said.values, mask[len(mask) - len(old):])  # fmt: skip
        for items, item in zip(found, own, strict=True):
            items.append(item)
    return Known(*found)


def penalty(kind: str, d: Any) -> Any:
    if kind == "kl":
        return d
    if kind == "abs":
        return abs(d)
    return d * d / 2 if kind == "mse" else torch.exp(-d) + d - 1


def counted(mask: torch.Tensor) -> list[int]:
    return [t for t in range(len(mask)) if mask[t]]


def gae(values: list[float], rewards: list[float], gamma: float, lam: float) -> list[float]:
    advantages, running, after = [0.0] * len(values), 0.0, 0.0
    for t in reversed(range(len(values))):
        running = rewards[t] + gamma * after - values[t] + gamma * lam * running
        advantages[t], after = running, values[t]
    return advantages


class Estimate(NamedTuple):
    """Of each sample, on its counted tokens, in order."""

    advantages: list[list[float]]
    returns: list[list[float]]


def turns_of(mask: torch.Tensor) -> list[list[int]]:
    """The runs of counted positions, as numbers among the counted ones."""
    runs: list[list[int]] = []
    for number, t in enumerate(counted(mask)):
        if t and mask[t - 1]:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def estimate(config: PPOConfig, batch: Samples, found: Known, kl_coef: float) -> Estimate:
    rewards = []
    for i, mask in enumerate(found.masks):
        here = [0.0] * len(counted(mask))
        for number, t in enumerate(counted(mask)):
            if config.kl_in == "reward":
                here[number] -= kl_coef * float(penalty(config.kl_penalty, found.old[i][t] - found.ref[i][t]))
        here[-1] += float(batch.scores[i])
        rewards.append(here)
    kind, gamma = config.advantage_estimator, config.gamma
    advantages: list[list[float]] = []
    returns: list[list[float]] = []
    for i, here in enumerate(rewards):
        n = len(here)
        values = [float(found.values[i][t]) for t in counted(found.masks[i])]
        lam = config.lam
        if config.length_adaptive_alpha is not None:
            lam = max(0.0, 1 - 1 / (config.length_adaptive_alpha * n))
        value_lam = lam if config.value_lam is None else config.value_lam
        if kind == "gae" and config.gae_level == "turn":
            runs = turns_of(found.masks[i])
            turn_values = [values[run[-1]] for run in runs]
            turn_rewards = [sum(here[t] for t in run) for run in runs]
            own, targets = (gae(turn_values, turn_rewards, gamma, x) for x in (lam, value_lam))
            advantages.append([own[k] for k, run in enumerate(runs) for _ in run])
            returns.append([targets[k] + turn_values[k] for k, run in enumerate(runs) for _ in run])
        elif kind == "gae":
            advantages.append(gae(values, here, gamma, lam))
            returns.append([a + v for a, v in zip(gae(values, here, gamma, value_lam), values, strict=True)])
        elif kind in ("reinforce_plus_plus", "remax"):
            base = batch.baselines[i] if kind == "remax" else 0.0
            advantages.append([sum(gamma ** (u - t) * here[u] for u in range(t, n)) - base for t in range(n)])
        else:
            same = [j for j in range(len(rewards)) if torch.equal(batch.queries[j], batch.queries[i])]
            totals = [sum(rewards[j]) for j in same]
            mean, own_total = sum(totals) / len(totals), sum(here)
            if kind == "rloo":
                a = own_total - (sum(totals) - own_total) / (len(totals) - 1)
            else:
                basis = totals if config.group_scale == "std" else [sum(other) for other in rewards]
                centre = sum(basis) / len(basis)
                deviation = math.sqrt(sum((x - centre) ** 2 for x in basis) / (len(basis) - 1))
                a = (own_total - mean) / (1.0 if config.group_scale == "none" else deviation + 1e-4)
            advantages.append([a] * n)
    whitens = config.whiten_advantages
    if kind in ("gae", "reinforce_plus_plus") if whitens is None else whitens:
        flat = [a for own in advantages for a in own]
        mean = sum(flat) / len(flat)
        variance = sum((a - mean) ** 2 for a in flat) / (len(flat) - 1)
        advantages = [[(a - mean) / math.sqrt(variance + 1e-8) for a in own] for own in advantages]
    return Estimate(advantages, returns)


def token_loss(config: PPOConfig, a: float, lp: torch.Tensor, old: torch.Tensor, roll: torch.Tensor,
               ratio: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """One token's policy loss; `ratio` is what the loss clips."""
    low, high = config.cliprange, config.cliprange if config.cliprange_high is None else config.cliprange_high
    if config.policy_loss in ("clip", "gspo", "sequence_clip"):
        loss = torch.maximum(-a * ratio, -a * ratio.clamp(1 - low, 1 + high))
        if config.dual_clip is not None and a < 0:
            loss = torch.minimum(loss, torch.tensor(-a * config.dual_clip))
        return loss
    if config.policy_loss == "cispo":
        return -min(float(ratio), config.cispo_bound) * a * lp
    if config.policy_loss == "reinforce":
        return -a * ratio
    if config.policy_loss == "sapo":
        tau = config.sapo_temperatures[0 if a > 0 else 1]
        return -a * 4 / tau / (1 + torch.exp(-tau * (ratio - 1)))
    moved = math.exp(float(lp)) - math.exp(float(roll))
    out = (a > 0 and moved > config.dppo_delta) or (a < 0 and moved < -config.dppo_delta)
    return lp * 0.0 if out else -a * ratio


def importance(config: PPOConfig, old: torch.Tensor, roll: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """The factor on each counted token of one sample."""
    differences = [float(old[t] - roll[t]) for t in counted(mask)]
    kind = config.importance_correction
    if kind is None:
        return [1.0] * len(differences)
    usual = {"tis": (0, 2), "icepop": (0.5, 5), "sequence_mask": (0, 3), "geometric_mask": (0.99, 1.01)}
    low, high = usual[kind] if config.importance_bounds is None else config.importance_bounds
    if kind == "tis":
        return [min(max(math.exp(d), low), high) for d in differences]
    if kind == "icepop":
        return [math.exp(d) if low <= math.exp(d) <= high else 0.0 for d in differences]
    whole = sum(differences) / (len(differences) if kind == "geometric_mask" else 1)
    return [1.0 if low <= math.exp(whole) <= high else 0.0] * len(differences)


def plain_loss(model: Any, config: PPOConfig, batch: Samples, found: Known, kl_coef: float) -> torch.Tensor:
    """The loss of the whole batch as one mini-batch, with its graph."""
    estimated = estimate(config, batch, found, kl_coef)
    number = sum(len(counted(mask)) for mask in found.masks)
    positives = [i for i, score in enumerate(batch.scores) if score > 0]
    positive_tokens = sum(len(counted(found.masks[i])) for i in positives)
    total = torch.zeros(())
    for i, (query, response) in enumerate(zip(batch.queries, batch.responses, strict=True)):
        said, places = ask(model, query, response, config.temperature), counted(found.masks[i])
        differences = [said.logprobs[t] - found.old[i][t] for t in places]
        sequence = sum(differences) / (len(places) if config.policy_loss == "gspo" else 1)
        factors = importance(config, found.old[i], found.sampler[i], found.masks[i])
        for k, t in enumerate(places):
            lp, old = said.logprobs[t], found.old[i][t]
            ratio = torch.exp(sequence if config.policy_loss in ("gspo", "sequence_clip") else lp - old)
            a = estimated.advantages[i][k]
            loss = factors[k] * token_loss(config, a, lp, old, found.sampler[i][t], ratio)
            if config.kl_in == "loss":
                loss = loss + kl_coef * penalty(config.kl_penalty, lp - found.ref[i][t])
            loss = loss - config.entropy_coef * said.entropies[t]
            if config.advantage_estimator == "gae":
                v, v_old, target = said.values[t], found.values[i][t], estimated.returns[i][k]
                near = v.clamp(v_old - config.cliprange_value, v_old + config.cliprange_value)
                loss = loss + config.vf_coef * torch.maximum((v - target) ** 2, (near - target) ** 2) / 2
            if config.loss_normalization == "samples":
                weight = 1 / (len(batch.queries) * len(places))
                positive_weight = 1 / (len(positives) * len(places))
            elif config.loss_normalization == "constant":
                weight = 1 / (len(batch.queries) * config.loss_constant_length)
                positive_weight = 1 / positive_tokens
            else:
                weight, positive_weight = 1 / number, 1 / positive_tokens
            total = total + weight * loss
            if i in positives:
                total = total - config.positive_nll_coef * positive_weight * lp
    return total


class Both(NamedTuple):
    """What one update moves, by parameter, with learning rate 1; and what the plain loop says."""

    moved: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    stats: dict[str, Any]


def both(
    model: Any,
    reference: Any,
    batch: Samples | None = None,
    *,
    trainer_class: type[PPOTrainer] = PPOTrainer,
    loss: Any = plain_loss,
    give: tuple[str, ...] = ("old_logprobs",),
    padding_side: str = "right",
    num_shared_layers: int | None = None,
    **settings: Any,
) -> Both:
    """One SGD step of the trainer, and the gradient of the same loss by the plain loop.

    Args:
        model: a wrapper or a plain model
        reference: None: the trainer's own
        give: further keyword lists for `step`, out of old_logprobs, sampling_logprobs, baseline_scores
    """
    batch = samples() if batch is None else batch
    options = {"batch_size": 8, "mini_batch_size": 8, "ppo_epochs": 1, **settings}
    config = PPOConfig(**options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    trainer = trainer_class(
        config, model, reference, tokenizer(padding_side), optimizer=optimizer, num_shared_layers=num_shared_layers
    )
    wrapped = trainer.accelerator.unwrap_model(trainer.model).eval()
    if reference is None:
        with trainer.optional_peft_ctx():
            refs = known(wrapped, trainer.ref_model or wrapped, batch, config).ref
        found = known(wrapped, wrapped, batch, config)._replace(ref=refs)
    else:
        found = known(wrapped, reference.eval(), batch, config)
    parameters = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    total = loss(wrapped, config, batch, found, config.init_kl_coef)
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    lists = {
        "old_logprobs": found.old, "sampling_logprobs": found.sampler, "baseline_scores": batch.baselines,
    }  # fmt: skip
    stats = trainer.step(
        batch.queries, batch.responses, batch.scores, batch.masks, **{name: lists[name] for name in give}
    )
    moved = {name: before[name] - p.detach() for name, p in parameters.items()}
    expected = {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }
    return Both(moved, expected, stats)


def largest_difference(result: Both) -> float:
    """Over all parameters, relative to the largest gradient."""
    largest = max(float(g.abs().max()) for g in result.gradients.values())
    return max(float((result.moved[n] - g).abs().max()) for n, g in result.gradients.items()) / largest


def moved_a_little(model: Any, seed: int = 3, by: float = 0.02) -> Any:
    """A copy with other weights, as a reference that is not the policy."""
    other, stream = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=stream))
    return other
