"""Properties of a model, tested with a pass over a few tokens: no architecture is known by name.

Probes run in eval mode and without gradients; random streams and modes are as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import GenerationConfig

from trl_step.models.decoder_pass import run_decoder
from trl_step.models.inner_model import decoder_backbone, plain_model, takes_argument, waits_for_device
from trl_step.models.sharding import is_sharded
from trl_step.models.shortcuts.modes import eval_mode

PROBE_LENGTH = 4
LEAK = 1e-4
"""of the largest logit: a smaller difference is rounding in float32"""
ROUNDING_STEPS = 4
"""the same for lower precisions, in rounding steps"""


def require_precision(model: nn.Module) -> None:
    """Raise a `ValueError` if a model in another precision than float32 cannot run, or has no finite logits.

    Products of experts and a few others know no float64, and the masks of a few models are infinite in it.

    Args:
        model: as in `require_causal`.
    """
    base = plain_model(model)
    if base.dtype == torch.float32 or not can_be_asked(model):
        return
    problem = ""
    try:
        with probing(model):
            logits = run_decoder(model, _probe_inputs(model, ordinary_ids(model, PROBE_LENGTH).unsqueeze(0))).logits
        if not bool(torch.isfinite(logits).all()):
            problem = "its logits for plain text are not finite"
    except RuntimeError as error:
        problem = str(error).strip().partition("\n")[0]
    if problem:
        raise ValueError(
            f"{type(base).__name__} does not run in {str(base.dtype).removeprefix('torch.')}: {problem}. Load it in "
            "float32, with from_pretrained(..., dtype=torch.float32), or convert it with .float()"
        )


def require_causal(model: nn.Module) -> None:
    """Raise a `ValueError` if a later token changes the logits of an earlier position.

    Then a log-prob depends on the tokens after it, and a sample's numbers on the padding after it.

    Args:
        model: a transformers model with a language model head, or a PeftModel around one. Of an encoder-decoder model
            the decoder is asked. A model whose weights are not all here, or which fails on plain text, is not asked.
    """
    change = _change_before_the_last(model)
    if change is None and not _last_token_has_a_slope(model):
        return
    name, by = type(plain_model(model)).__name__, "" if change is None else f" by {change:.2g}"
    raise ValueError(
        f"{name} is not causal: another last token changes the logits of earlier positions{by}, so a "
        "token's log-prob would depend on the tokens after it. PPO needs a model that reads from left to right: set "
        "is_decoder=True in the configuration of an encoder that was trained as one, or take another model"
    )


def change_by_length(model: nn.Module) -> float | None:
    """By how much one more token, whichever it is, changes the logits of earlier positions; None if it is rounding.

    ProphetNet does so: its log-probs depend on the number of columns of a batch.

    Args:
        model: as in `require_causal`.
    """
    if not can_be_asked(model):
        return None
    ids = ordinary_ids(model, PROBE_LENGTH + 1).unsqueeze(0)
    longer, shorter = (_logits_of(model, rows) for rows in (ids, ids[:, :-1]))
    if longer is None or shorter is None:
        return None
    return beyond_rounding(longer[0, :-1], shorter[0])


def _change_before_the_last(model: nn.Module) -> float | None:
    """By how much the last token changes earlier logits; None if it is rounding, or cannot be told."""
    if not can_be_asked(model):
        return None
    ids = ordinary_ids(model, PROBE_LENGTH + 1)
    rows = torch.stack((ids[:-1], torch.cat((ids[: PROBE_LENGTH - 1], ids[-1:]))))  # they differ in the last token
    logits = _logits_of(model, rows)
    return None if logits is None else beyond_rounding(logits[0, :-1], logits[1, :-1])


def _last_token_has_a_slope(model: nn.Module) -> bool:
    """Whether earlier logits have a derivative by the last token's embedding, in a precision whose rounding may hide
    their change. What a mask hides has a derivative of exactly 0."""
    base = plain_model(model)
    if not can_be_asked(model) or base.dtype.itemsize > 2:
        return False
    embedding = getattr(decoder_backbone(model) or base, "get_input_embeddings", base.get_input_embeddings)()
    seen: list[torch.Tensor] = []

    def follow(_module: nn.Module, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
        followed = output.detach().requires_grad_()
        if output.numel() == PROBE_LENGTH * output.shape[-1]:
            seen.append(followed)
        return followed

    handle = embedding.register_forward_hook(follow)
    try:
        logits = _logits_of(model, ordinary_ids(model, PROBE_LENGTH).unsqueeze(0), gradients=True)
        if logits is None or not seen or not logits.requires_grad:
            return False
        (slopes,) = torch.autograd.grad(logits[0, :-1].float().square().sum(), seen[-1], allow_unused=True)
    except RuntimeError:  # an operator without a derivative
        return False
    finally:
        handle.remove()
    if slopes is None:
        return False
    last = slopes.reshape(PROBE_LENGTH, -1)[-1]  # the positions are dimension 0 or 1
    return bool(((last != 0) & ~last.isnan()).any())


def _logits_of(model: nn.Module, rows: torch.Tensor, gradients: bool = False) -> torch.Tensor | None:
    """Logits [n, S, V] of `rows` [n, S]; None if the model fails on plain text."""
    try:
        with probing(model), torch.set_grad_enabled(gradients):
            return run_decoder(model, _probe_inputs(model, rows)).logits
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None  # whatever is wrong shows where the model is used


def _probe_inputs(model: nn.Module, rows: torch.Tensor) -> dict[str, Any]:
    """Arguments of a forward pass over the decoder's `rows` [n, S], without a cache as in a step."""
    inputs: dict[str, Any] = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    if plain_model(model).config.is_encoder_decoder:
        # of another length than the rows, by which a slope is known to be the decoder's
        query = ordinary_ids(model, PROBE_LENGTH - 1).expand(len(rows), -1)
        inputs = {"input_ids": query, "attention_mask": torch.ones_like(query), "decoder_input_ids": rows}
    if takes_argument(model, "use_cache"):
        inputs["use_cache"] = False
    return inputs


def beyond_rounding(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """The largest difference of logits, if it is more than rounding."""
    change = float((one.float() - other.float()).abs().max())
    limit = max(LEAK, ROUNDING_STEPS * torch.finfo(one.dtype).eps) * float(one.float().abs().max())
    return change if change > limit else None


def can_be_asked(model: nn.Module) -> bool:
    """Whether all weights of `model` are here, and where its attention runs."""
    here = not is_sharded(model) and not any(parameter.is_meta for parameter in model.parameters())
    return here and not waits_for_device(model)


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


class BatchMates(Enum):
    """Beside which prompts `generate` gives a prompt the logits that it has alone."""

    ANY = "any"
    SAME_LENGTH = "same length"
    """padding changes them"""
    NONE = "none"
    """other rows change them"""


_BATCH_MATES: WeakKeyDictionary[nn.Module, BatchMates] = WeakKeyDictionary()
"""Answers of `batch_mates`, by transformers model."""


def batch_mates(model: nn.Module, pad_token_id: int) -> BatchMates:
    """Beside which prompts `generate` gives a prompt the logits that it has alone, up to rounding.

    A recurrent model reads the padding, one that counts its positions from the first column moves by it, and one that
    keeps a state may lose it in the second new token. Asked once for each model, with two new tokens for a few prompts,
    on the side that `sampling.local` pads. A model that cannot be asked is taken at its word: `ANY`.

    Args:
        model: as in `require_causal`; its weights are here.
        pad_token_id: the filler.
    """
    base = plain_model(model)
    if base not in _BATCH_MATES:
        try:
            with probing(base):
                _BATCH_MATES[base] = _batch_mates(base, pad_token_id)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
            return BatchMates.ANY
    return _BATCH_MATES[base]


def _batch_mates(base: Any, pad_token_id: int) -> BatchMates:
    *ids, written = ordinary_ids(base, 10).split((2, 2, 5, 1))
    short, other, long = ids
    filler = short.new_full((len(long) - len(short),), pad_token_id)
    parts = [short, filler] if base.config.is_encoder_decoder else [filler, short]
    rows, mask = torch.stack((torch.cat(parts), long)), torch.ones(2, len(long), dtype=torch.int64, device=long.device)
    mask[0] = torch.cat([torch.full_like(part, part is short) for part in parts])
    alone = _two_new_logits(base, short[None], torch.ones_like(short[None]), written)
    limit = math.sqrt(torch.finfo(base.dtype).eps) * float(alone.abs().max())

    def is_as_alone(rows: torch.Tensor, mask: torch.Tensor) -> bool:
        return float((_two_new_logits(base, rows, mask, written)[:1] - alone).abs().max()) <= limit

    if is_as_alone(rows, mask):
        return BatchMates.ANY
    equal = torch.stack((short, other))
    return BatchMates.SAME_LENGTH if is_as_alone(equal, torch.ones_like(equal)) else BatchMates.NONE


def _two_new_logits(base: Any, ids: torch.Tensor, mask: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """Logits [n, 2, V] float32 of two new tokens, the first of which is `written` [1] in every row."""
    settings = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=2, min_new_tokens=2, output_logits=True,
        return_dict_in_generate=True, pad_token_id=int(ids[0, 0]),
    )  # fmt: skip
    # the class's own: a script may have put another one on the object
    found = type(base).generate(
        base,
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        prefix_allowed_tokens_fn=lambda _row, _ids: written.tolist(),
    )
    return torch.stack(found.logits, dim=1).float()
