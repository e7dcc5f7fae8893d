"""Samples in one row: no padding, and a prompt that several of them begin with runs once; gradients add up in it.

The model runs on a `PackedRow` as on a batch of one. Only attention has to know: it is handed to the model through
transformers' interface for attention functions, and lets stems attend to themselves, and branches to their stem and to
themselves, with torch's kernel and the model's own mask (causal, sliding window, chunks) at the tokens' positions in
their samples. Stems and branches are padded for it, each to their longest: that takes no more than attention over
padded samples does, and a causal kernel needs no mask, where one over the row would have (sum of lengths)² entries. All
else in a layer sees the row. An encoder has no answers to tell apart: it runs on one sample of each prompt.

`row_support` tests whether a model gives the same results in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from trl_step.models.inner_model import FLASH_KERNELS, decoder_backbone, plain_model, takes_argument
from trl_step.models.notices import quiet_transformers
from trl_step.models.probes import beyond_rounding, can_be_asked, ordinary_ids, probing
from trl_step.models.shortcuts.modes import replaced_forward
from trl_step.models.shortcuts.packed_row import PackedRow, Upload
from trl_step.private_names import attention_kernel

Answer = TypeVar("Answer")

KERNEL = "sdpa"
"""transformers' name of the attention function that is called for stems and for branches"""
SHARED = "sdpa_with_shared_prompts"
"""the name of the one here"""
HARMLESS = frozenset(("position_ids", "s_aux"))
"""Tensors that a layer hands to its attention function, and that are not by pairs of tokens."""

_SAMPLES: ContextVar[tuple[PackedRow | RightPadded, str]] = ContextVar("samples")
"""what the models inside of `sharing` run on, and the name of their own attention function"""


class EncodedOnce(NamedTuple):
    """B samples of an encoder-decoder model, whose G different queries are encoded."""

    first: torch.Tensor
    """int64 [G], a sample of each query"""
    query_of: torch.Tensor
    """int64 [B], the query of each sample"""

    @classmethod
    def of(cls, prompts: np.ndarray, upload: Upload) -> EncodedOnce:
        """Of samples with these numbers [B], equal for equal queries."""
        _, first, query_of = np.unique(prompts, return_index=True, return_inverse=True)
        return cls(upload(first), upload(query_of))


class RightPadded(NamedTuple):
    """Samples as they are, padded on the right: no mask is needed."""

    width: int
    """S"""


Shared = PackedRow | EncodedOnce | RightPadded


def sharing(model: nn.Module, shared: Shared | None) -> AbstractContextManager[None]:
    """Inside, `model` takes what `shared` describes. Surround the backward pass as well: checkpointed layers run again.

    Args:
        model: a transformers model, or a PeftModel around one, whose `row_support` has it
        shared: None: samples as they are
    """
    if shared is None:
        return nullcontext()
    if not isinstance(shared, EncodedOnce):
        return _own_attention(decoder_backbone(model), shared)
    encoder = plain_model(model).get_encoder()
    return replaced_forward(encoder, partial(_encode_once, encoder.forward, shared))


@contextmanager
def _own_attention(backbone: Any, samples: PackedRow | RightPadded) -> Iterator[None]:
    before = attention_kernel(backbone)
    token = _SAMPLES.set((samples, before))
    try:
        backbone.set_attn_implementation(SHARED)
        yield
    finally:
        backbone.set_attn_implementation(before)
        _SAMPLES.reset(token)


def _encode_once(encode: Callable[..., Any], shared: EncodedOnce, *args: Any, **kwargs: Any) -> Any:
    def once(value: Any) -> Any:
        of_samples = isinstance(value, torch.Tensor) and value.shape[:1] == shared.query_of.shape
        return value.index_select(0, shared.first) if of_samples else value

    output = encode(*map(once, args), **{name: once(value) for name, value in kwargs.items()})
    output["last_hidden_state"] = output["last_hidden_state"].index_select(0, shared.query_of)
    return output


# --- attention over a row -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedMask:
    """What layers of one kind get in place of a mask. True where a token attends."""

    samples: PackedRow | RightPadded
    kernel: str
    """transformers' name of the model's own attention function"""
    stems: torch.Tensor | None
    """bool [1, 1, P, P], of padded samples [1, 1, S, S]; None: causal"""
    branches: torch.Tensor | None
    """bool [M, 1, R, P + R]; None: there are none"""


def _mask(
    *,
    mask_function: Callable[..., torch.Tensor],
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: Any = "cpu",
    **_: Any,
) -> PackedMask:
    """The mask of layers of one kind; transformers calls it.

    Args:
        mask_function: (batch, head, position of the query, position of the key) -> whether it attends
        local_size: how many positions a query sees; None: all before it
        allow_is_causal_skip: `mask_function` is causal, apart from `local_size`
        use_vmap: `mask_function` takes single positions only
    """
    if use_vmap:
        raise ValueError("a mask of the model's own may depend on more than positions")
    row, kernel = _SAMPLES.get()
    if kernel != KERNEL and (local_size is not None or not allow_is_causal_skip):
        raise ValueError(f"{kernel} takes no mask, and the model's is not causal alone")
    prompt = torch.arange(row.width if isinstance(row, RightPadded) else row.stems.shape[1], device=device)
    stems = None
    if not allow_is_causal_skip or (local_size is not None and len(prompt) >= local_size):
        stems = mask_function(0, 0, prompt.view(1, 1, -1, 1), prompt.view(1, 1, 1, -1))
    if isinstance(row, RightPadded) or len(row.stem_of) == 0:
        return PackedMask(row, kernel, stems, None)
    answer = torch.arange(row.branches.shape[1], device=device)
    begin = row.stem_lengths.index_select(0, row.stem_of).view(-1, 1, 1, 1)
    queries = begin + answer.view(1, 1, -1, 1)
    before = mask_function(0, 0, queries, prompt.view(1, 1, 1, -1)) & (prompt < begin)
    own = mask_function(0, 0, queries, begin + answer.view(1, 1, 1, -1))
    return PackedMask(row, kernel, stems, torch.cat((before, own), dim=-1))


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a row: query [1, H, N, d], key and value [1, H', N, d or d'] -> [1, N, H, d']; padded samples have
    b in place of 1 and S in place of N."""
    unknown = [name for name, option in options.items() if isinstance(option, torch.Tensor) and name not in HARMLESS]
    if unknown or not isinstance(attention_mask, PackedMask):
        raise ValueError(f"attention depends on more than positions: {', '.join(unknown) or type(attention_mask)}")
    row, kernel = attention_mask.samples, AttentionInterface()[attention_mask.kernel]
    options.pop("position_ids", None)  # a kernel would look for packed samples in them
    if isinstance(row, RightPadded):
        return kernel(module, query, key, value, attention_mask.stems, **options)

    def part(of_row: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """[1, H, N, d], [n, m] -> [n, m, H, d]"""
        return of_row.squeeze(0).transpose(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)

    def attended(inputs: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
        """[n, m, H, d] each -> [n * m, H, d']"""
        return kernel(module, *(one.transpose(1, 2) for one in inputs), mask, **options)[0].flatten(0, 1)

    # after the end of a part no token is attended to, and those there attend to themselves: they stay finite
    stems = [part(one, row.stems) for one in (query, key, value)]
    if attention_mask.branches is None:
        return attended(stems, attention_mask.stems).index_select(0, row.in_parts).unsqueeze(0), None
    branches = [part(one, row.branches) for one in (query, key, value)]
    seen = [
        torch.cat((before.index_select(0, row.stem_of), own), dim=1)
        for before, own in zip(stems[1:], branches[1:], strict=True)
    ]
    parts = attended(stems, attention_mask.stems), attended([branches[0], *seen], attention_mask.branches)
    return torch.cat(parts).index_select(0, row.in_parts).unsqueeze(0), None


AttentionInterface.register(SHARED, _attend)
AttentionMaskInterface.register(SHARED, _mask)


# --- whether a model can --------------------------------------------------------------------------------------------


class RowSupport(NamedTuple):
    """What a model says the same about, up to rounding, as about padded samples."""

    prompts_once: bool
    """samples whose prompts run once"""
    no_padding: bool
    """samples in one row without padding"""

    @classmethod
    def of_all(cls, supports: Iterable[RowSupport]) -> RowSupport:
        """What each of them has."""
        return cls(*map(all, zip(*supports, strict=True)))


def row_support(model: nn.Module) -> RowSupport:
    """What a model supports, by its answers to two samples.

    Recurrent models support neither, as a state runs through the row; nor do those without position ids, without the
    interface for attention functions or with another kernel than torch's. An encoder-decoder pads. A model whose
    weights are not all here cannot be asked.

    Args:
        model: a transformers model, or a PeftModel around one
    """
    if not can_be_asked(model):
        return RowSupport(False, False)
    if plain_model(model).config.is_encoder_decoder:
        return RowSupport(bool(_asked(model, _encodes_the_same)), False)
    expected = _asked(model, _says_of_padded)
    if expected is None:
        return RowSupport(False, False)
    return RowSupport(*(bool(_asked(model, partial(_packs, expected, shared))) for shared in (True, False)))


def _asked(model: nn.Module, question: Callable[[nn.Module], Answer]) -> Answer | None:
    """The answer of `model`; None if it fails."""
    try:
        with probing(model), quiet_transformers():  # which says of a model that it has no interface
            return question(model)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return None


PROMPT, LENGTHS = 4, (7, 6)
"""Tokens of the probe's prompt, and of the two samples that begin with it."""


def _says_of_padded(model: nn.Module) -> torch.Tensor | None:
    """Hidden states [2, S, D] of the probe's samples; None if a row of them cannot be described to the model."""
    backbone: Any = decoder_backbone(model)
    if backbone is None or not takes_argument(model, "position_ids"):
        return None
    ids = _probe_ids(model, max(LENGTHS))
    return backbone(input_ids=ids, attention_mask=torch.ones_like(ids), **_without_cache(backbone))[0]


def _packs(expected: torch.Tensor, shared: bool, model: nn.Module) -> bool:
    """Whether two samples say what is `expected` in one row, with their prompt `shared` or without sharing."""
    backbone: Any = decoder_backbone(model)
    kernels = (KERNEL,) if shared else (KERNEL, *FLASH_KERNELS)  # flash attention takes no mask: stems, but no branches
    if attention_kernel(backbone) not in kernels:
        return False
    lengths, first = np.array(LENGTHS), np.zeros(2, dtype=np.int64)
    ids = _probe_ids(model, max(LENGTHS))
    upload = partial(_upload, device=ids.device)
    prompts, occupied = first if shared else np.arange(2), np.stack((first, lengths), axis=1)
    row = PackedRow.of(prompts, first + PROMPT, occupied, ids.shape[1], upload)
    with sharing(model, row):
        found = row.unpack(backbone(**row.arguments(ids), **_without_cache(backbone))[0])
    real = upload(np.arange(ids.shape[1]) < lengths[:, None])
    return beyond_rounding(expected[real], found[real]) is None


def _without_cache(backbone: nn.Module) -> dict[str, bool]:
    return {"use_cache": False} if takes_argument(backbone, "use_cache") else {}


def _encodes_the_same(model: nn.Module) -> bool:
    encoder, ids = plain_model(model).get_encoder(), _probe_ids(model, PROMPT)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = encoder(**inputs)[0]
    with sharing(model, EncodedOnce.of(np.zeros(2, dtype=np.int64), partial(_upload, device=ids.device))):
        return beyond_rounding(expected, encoder(**inputs)[0]) is None


def _probe_ids(model: nn.Module, width: int) -> torch.Tensor:
    """[2, width], equal on the prompt."""
    ids = ordinary_ids(model, 2 * width).view(2, width)
    ids[1, :PROMPT] = ids[0, :PROMPT].clone()
    return ids


def _upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
