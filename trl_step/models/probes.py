"""Questions about a model that a pass over a few tokens answers: it knows no architecture by name.

Probes run in eval mode and without gradients; random streams and modes are as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trl_step.models.decoder_pass import run_decoder
from trl_step.models.inner_model import plain_model
from trl_step.models.sharding import is_sharded
from trl_step.models.shortcuts.modes import eval_mode

PROBE_LENGTH = 4
LEAK = 1e-4
"""of the largest logit: a smaller difference is rounding in float32"""
ROUNDING_STEPS = 4
"""the same for lower precisions, in rounding steps"""


def require_causal(model: nn.Module) -> None:
    """Raise a `ValueError` if a later token changes the logits of an earlier position.

    Then a log-prob depends on the tokens after it, and a sample's numbers on the padding after it.

    Args:
        model: a transformers model with a language model head, or a PeftModel around one. Of an encoder-decoder model
            the decoder is asked. A model whose weights are not all here, or which fails on plain text, is not asked.
    """
    change = _change_before_the_last(model)
    if change is None:
        return
    name = type(plain_model(model)).__name__
    raise ValueError(
        f"{name} is not causal: another last token changes the logits of earlier positions by {change:.2g}, so a "
        "token's log-prob would depend on the tokens after it. PPO needs a model that reads from left to right: set "
        "is_decoder=True in the configuration of an encoder that was trained as one, or take another model"
    )


def _change_before_the_last(model: nn.Module) -> float | None:
    """By how much the last token changes earlier logits; None if it is rounding, or cannot be told."""
    if not can_be_asked(model):
        return None
    ids = ordinary_ids(model, PROBE_LENGTH + 1)
    rows = torch.stack((ids[:-1], torch.cat((ids[: PROBE_LENGTH - 1], ids[-1:]))))  # they differ in the last token
    inputs = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    if plain_model(model).config.is_encoder_decoder:
        inputs["input_ids"] = rows[:1].expand_as(rows)
        inputs["decoder_input_ids"] = rows
    try:
        with probing(model):
            logits = run_decoder(model, inputs).logits
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None  # whatever is wrong shows where the model is used
    earlier = logits[:, :-1].float()
    change = float((earlier[0] - earlier[1]).abs().max())
    limit = max(LEAK, ROUNDING_STEPS * torch.finfo(logits.dtype).eps) * float(earlier.abs().max())
    return change if change > limit else None


def can_be_asked(model: nn.Module) -> bool:
    """Whether all weights of `model` are here."""
    return not is_sharded(model) and not any(parameter.is_meta for parameter in model.parameters())


def ordinary_ids(model: nn.Module, count: int) -> torch.Tensor:
    """`count` different ids, if the vocabulary has so many, from its middle and none that the configuration names."""
    base = plain_model(model)
    weight = base.get_input_embeddings().weight
    named: set[int] = set()
    for config in (base.config, base.config.get_text_config(decoder=True)):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                named.update(value if isinstance(value, list) else [value])
    rows = weight.shape[0]
    ids = [i % rows for i in range(rows // 2, rows // 2 + rows) if i % rows not in named][:count]
    while len(ids) < count:
        ids.append(ids[-1] if ids else 0)
    return torch.tensor(ids, device=weight.device)


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, and the random streams restored: a few models draw numbers in eval mode too."""
    cuda: list[Any] = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.no_grad(), eval_mode(model), torch.random.fork_rng(devices=cuda):
        yield
