"""Finds the computation from a model's hidden states to its logits by running the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from trl_step.core import in_float64
from trl_step.head.tiles import OutputHead
from trl_step.models.decoder_pass import run_decoder
from trl_step.models.inner_model import output_embedding, plain_model
from trl_step.models.shortcuts.modes import eval_mode

PROBE_TOKENS = 2
ROUNDING_STEPS = 16
"""maximum difference between a logit and the formula, in rounding steps of the logit's dtype"""


class _Probe(NamedTuple):
    hidden: torch.Tensor
    """[2, D], as it enters the output embedding"""
    logits: torch.Tensor
    """[2, V]"""


@torch.no_grad()
def describe_output_head(pretrained_model: nn.Module) -> OutputHead | None:
    """The formula from hidden rows to logits, if the model follows one.

    The model runs on two tokens, in eval mode; the hidden rows that enter its output embedding and its logits are
    compared with logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap).

    Args:
        pretrained_model: a transformers model with a language model head, or a PeftModel around one.

    Returns:
        The weight [V, D] (the module's own parameter), the bias [V] (the model's own parameter or buffer) or None,
        the scale and the soft cap. None if the logits do not follow the formula up to the rounding of their dtype, or
        if the output embedding has other parts (adapters, quantized weights).
    """
    embedding = output_embedding(pretrained_model)
    weight, bias = _plain_parameters(embedding)
    if weight is None:
        return None
    base = plain_model(pretrained_model)
    shift = getattr(base, "final_logits_bias", None)
    if shift is not None:
        if bias is not None:
            return None
        bias = shift.flatten()
    probe = _probe(pretrained_model, embedding)
    if probe.logits.shape != (len(probe.hidden), weight.shape[0]):  # ProphetNet's hidden rows are more than its logits
        return None
    exact_bias = None if bias is None else in_float64(bias)
    hidden = probe.hidden.to(weight.device)  # the last layer may lie on another device
    linear = nn.functional.linear(in_float64(hidden), in_float64(weight), exact_bias)
    # a model may have the setting without following it
    for softcap in {getattr(base.config.get_text_config(decoder=True), "final_logit_softcapping", None), None}:
        scale = _fit_scale(linear, probe.logits, softcap, base.config)
        head = OutputHead(weight, bias, scale, softcap)
        if _follows(head, linear, probe.logits):
            return head
    return None


def _plain_parameters(embedding: nn.Module) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Weight and bias of a module that has nothing else: an adapter on the head must not be overlooked."""
    parameters = dict(embedding.named_parameters())
    weight = parameters.pop("weight", None)
    bias = parameters.pop("bias", None)
    if parameters or weight is None or weight.dim() != 2 or not weight.is_floating_point() or weight.is_meta:
        return None, None
    return weight, bias


def _probe(model: nn.Module, embedding: nn.Module) -> _Probe:
    with eval_mode(model), _entering(embedding) as entered:
        logits = probe_logits(model)
    return _Probe(entered[-1].reshape(-1, entered[-1].shape[-1]), logits.reshape(-1, logits.shape[-1]))


@torch.no_grad()
def probe_logits(model: nn.Module, more: Sequence[int] = ()) -> torch.Tensor:
    """Logits [1, 2, V] of `model` for two tokens; [1, 2 + n, V] with n `more` of them."""
    base = plain_model(model)
    device = base.get_input_embeddings().weight.device
    vocabulary = base.get_input_embeddings().weight.shape[0]
    # ids that are rarely special; a model may treat its padding id differently
    ids = torch.arange(vocabulary - PROBE_TOKENS, vocabulary, device=device).clamp(min=0)
    ids = torch.cat((ids, ids.new_tensor(more))).unsqueeze(0)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if base.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return run_decoder(model, inputs).logits


def _fit_scale(linear: torch.Tensor, logits: torch.Tensor, softcap: float | None, config: Any) -> float:
    """The factor from `linear` to the soft cap's input, by least squares; exact if the configuration has it."""
    target = in_float64(logits).to(linear.device)
    if softcap is not None:
        target = softcap * torch.atanh((target / softcap).clamp(-0.999, 0.999))
        linear = linear.where((target.abs() < softcap), 0.0)
    denominator = (linear * linear).sum()
    if denominator == 0:
        return 1.0
    scale = float((linear * target).sum() / denominator)
    tolerance = ROUNDING_STEPS * _rounding_step(logits)
    for candidate in (1.0, *_numbers_of(config.get_text_config(decoder=True))):
        if abs(scale - candidate) <= tolerance * abs(candidate):
            return candidate
    return scale


def _numbers_of(config: Any) -> Iterator[float]:
    """Each float of the configuration and its inverse: a scale of the logits has many names there."""
    for number in config.to_dict().values():
        if isinstance(number, float) and number != 0:
            yield number
            yield 1.0 / number


def _follows(head: OutputHead, linear: torch.Tensor, logits: torch.Tensor) -> bool:
    expected = head.scale * linear
    if head.softcap is not None:
        expected = head.softcap * torch.tanh(expected / head.softcap)
    logits = in_float64(logits).to(expected.device)
    tolerance = ROUNDING_STEPS * _rounding_step(head.weight) * logits.abs().max().clamp(min=1e-3)
    return bool(((expected - logits).abs() <= tolerance).all())


def _rounding_step(tensor: torch.Tensor) -> float:
    """Relative rounding of a product in this tensor's dtype; TF32, if switched on, has 10 bits."""
    step = torch.finfo(tensor.dtype).eps
    if tensor.is_cuda and tensor.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return max(step, 2.0**-10)
    return step


@contextmanager
def _entering(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The first argument of each call of `module`."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()
