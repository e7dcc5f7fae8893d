"""A model on a packed row says what it says about each sample alone, and its gradients are those of a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from tests import tiny
from trl_step.models.decoder_pass import run_decoder
from trl_step.models.inner_model import decoder_backbone
from trl_step.models.shortcuts import shared_prompts
from trl_step.models.shortcuts.modes import training_without_dropout
from trl_step.models.shortcuts.packed_row import PackedRow
from trl_step.models.shortcuts.shared_prompts import SHARED, EncodedOnce, row_support, sharing

SIZES = {**tiny.SIZES, **tiny.IDS, "intermediate_size": 64, "max_position_embeddings": 64}
PROMPTS = np.array([0, 1, 0, 2, 0, 1])
PROMPT_LENGTHS = np.array([9, 4, 9, 5, 9, 4])
LENGTHS = np.array([11, 16, 10, 13, 17, 5])
"""Six samples: three answers to one prompt, two to another, and one of a prompt of its own."""


def gqa_with_windows() -> Any:
    return MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=1, head_dim=16, sliding_window=4))


def windows_on_one_layer() -> Any:
    types = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=16, sliding_window=4, layer_types=types)
    )


def lora() -> Any:
    model = get_peft_model(tiny.llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


KINDS: dict[str, Callable[[], Any]] = {
    "gpt2": tiny.gpt2,
    "opt": tiny.opt,
    "llama": tiny.llama,
    "mistral": gqa_with_windows,
    "gemma3": windows_on_one_layer,
    "lora": lora,
}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    model = KINDS[kind]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def samples() -> torch.Tensor:
    """[6, 17], padded on the right."""
    stream = torch.Generator().manual_seed(1)
    ids = torch.randint(4, tiny.VOCABULARY, (len(PROMPTS), int(LENGTHS.max())), generator=stream)
    for i, (prompt, prompt_length, length) in enumerate(zip(PROMPTS, PROMPT_LENGTHS, LENGTHS, strict=True)):
        ids[i, :prompt_length] = ids[int(np.argmax(prompt == PROMPTS)), :prompt_length].clone()
        ids[i, length:] = tiny.PAD
    return ids


def row_of(first: int = 0, width: int = 17) -> PackedRow:
    occupied = np.stack((LENGTHS * 0 + first, LENGTHS + first), axis=1)
    return PackedRow.of(PROMPTS, PROMPT_LENGTHS, occupied, width, torch.from_numpy)


def row_of_different_prompts(first: int = 0, width: int = 17) -> PackedRow:
    occupied = np.stack((LENGTHS * 0 + first, LENGTHS + first), axis=1)
    return PackedRow.of(np.arange(len(LENGTHS)), PROMPT_LENGTHS, occupied, width, torch.from_numpy)


ROWS: dict[str, tuple[Callable[[], PackedRow], Callable[[Any], bool]]] = {
    "shared prompts": (row_of, lambda model: row_support(model).prompts_once),
    "no padding": (row_of_different_prompts, lambda model: row_support(model).no_padding),
}


def weights_of(logits: torch.Tensor) -> torch.Tensor:
    """Something to take the gradient of: another weight for each logit, the same whatever else is in the batch."""
    return torch.sin(torch.arange(logits.numel(), dtype=torch.float32)).view(logits.shape)


# --- the row --------------------------------------------------------------------------------------------------------


def test_a_row_by_hand() -> None:
    """Samples 1 2 3, 7 8 9 and 1 2 4 5, of which the first and the last begin with the prompt 1 2."""
    occupied = np.array([[0, 3], [1, 4], [0, 4]])
    row = PackedRow.of(np.array([5, 2, 5]), np.array([2, 1, 2]), occupied, 4, torch.from_numpy)
    padded = torch.tensor([[1, 2, 3, 0], [0, 7, 8, 9], [1, 2, 4, 5]])
    assert row.pack(padded).tolist() == [[7, 8, 9, 1, 2, 3, 4, 5]]
    assert row.positions.tolist() == [[0, 1, 2, 0, 1, 2, 2, 3]]
    assert row.stems.tolist() == [[0, 1, 2], [3, 4, 3]]
    assert row.branches.tolist() == [[5, 5], [6, 7]]
    assert row.in_parts.tolist() == [0, 1, 2, 3, 4, 6, 8, 9]
    assert row.stem_of.tolist() == [1, 1]
    assert row.stem_lengths.tolist() == [3, 2]
    real = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    assert torch.equal(row.unpack(row.pack(padded))[real], padded[real])


def test_a_row_of_different_prompts_by_hand() -> None:
    """Samples 1 2 3, 7 and 1 2 4 5."""
    occupied = np.array([[0, 3], [3, 4], [0, 4]])
    row = PackedRow.of(np.arange(3), np.array([2, 1, 2]), occupied, 4, torch.from_numpy)
    padded = torch.tensor([[1, 2, 3, 0], [0, 0, 0, 7], [1, 2, 4, 5]])
    assert row.pack(padded).tolist() == [[1, 2, 3, 7, 1, 2, 4, 5]]
    assert row.positions.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3]]
    assert row.stems.tolist() == [[0, 1, 2, 0], [3, 3, 3, 3], [4, 5, 6, 7]]
    assert row.in_parts.tolist() == [0, 1, 2, 4, 8, 9, 10, 11]
    assert row.branches.numel() == row.stem_of.numel() == 0
    real = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    assert torch.equal(row.unpack(row.pack(padded))[real], padded[real])


# --- what models say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ROWS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_a_loop_over_samples(kind: str, checkpointing: bool, way: str) -> None:
    model = made(kind)
    make_row, can = ROWS[way]
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    ids, row = samples(), make_row()
    assert can(model)

    with training_without_dropout(model):
        alone = []
        for sample, length in zip(ids, LENGTHS.tolist(), strict=True):
            logits = model(input_ids=sample[None, :length], use_cache=False).logits[0]
            (logits * weights_of(logits)).sum().backward()
            alone.append(logits.detach())
        expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()

        with sharing(model, row):
            packed = run_decoder(model, {**row.arguments(ids), "use_cache": False}).logits
            logits = row.unpack(packed)
            loss = sum((one[: len(own)] * weights_of(own)).sum() for one, own in zip(logits, alone, strict=True))
            loss.backward()

    for found, own in zip(logits, alone, strict=True):
        torch.testing.assert_close(found[: len(own)], own, rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1
    for name, parameter in model.named_parameters():
        if name in expected:
            assert float((parameter.grad - expected[name]).abs().max()) <= 1e-5 * largest, name


def test_a_token_runs_once() -> None:
    model, row = made("llama"), row_of()
    tokens: list[int] = []
    decoder_backbone(model).layers[0].mlp.register_forward_hook(lambda _m, args, _o: tokens.append(args[0].shape[:2]))
    with sharing(model, row), torch.no_grad():
        model(**row.arguments(samples()))
    prompts, answers, single = 9 + 4, (2 + 1 + 8) + (12 + 1), 13
    assert tokens == [(1, prompts + answers + single)]


def test_no_token_is_padding() -> None:
    model, row = made("llama"), row_of_different_prompts()
    tokens: list[int] = []
    decoder_backbone(model).layers[0].mlp.register_forward_hook(lambda _m, args, _o: tokens.append(args[0].shape[:2]))
    with sharing(model, row), torch.no_grad():
        model(**row.arguments(samples()))
    assert tokens == [(1, LENGTHS.sum())]


@pytest.fixture
def causal_kernel(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An attention function without masks, as flash attention is; the shapes of its queries, and whether it was told
    positions."""
    shapes: list[Any] = []

    def attend(_module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        assert attention_mask is None
        shapes.append((tuple(query.shape), "position_ids" in options))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    AttentionInterface.register("no_masks", attend)
    AttentionMaskInterface.register("no_masks", lambda **_: None)
    monkeypatch.setattr(shared_prompts, "FLASH_KERNELS", ("no_masks",))
    return shapes


def test_a_kernel_that_takes_no_mask_takes_samples_but_no_answers(causal_kernel: list[Any]) -> None:
    model, row, ids = made("llama"), row_of_different_prompts(), samples()
    expected = model(input_ids=ids).logits
    model.set_attn_implementation("no_masks")
    assert row_support(model).no_padding
    assert not row_support(model).prompts_once
    causal_kernel.clear()
    with sharing(model, row), torch.no_grad():
        logits = row.unpack(model(**row.arguments(ids)).logits)
    assert causal_kernel == [((6, 2, 17, 16), False)] * 2, "positions of a row would say that it is packed"
    for found, own, length in zip(logits, expected, LENGTHS, strict=True):
        torch.testing.assert_close(found[:length], own[:length], rtol=1e-5, atol=1e-5)
    assert model.config._attn_implementation == "no_masks"


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_a_kernel_that_takes_no_mask_knows_no_windows(kind: str, causal_kernel: list[Any]) -> None:
    model = made(kind)
    model.set_attn_implementation("no_masks")
    assert not row_support(model).no_padding
    assert model.config._attn_implementation == "no_masks"


def test_the_model_is_given_back_as_it_was() -> None:
    model = made("gpt2")
    with sharing(model, row_of()):
        assert model.config._attn_implementation == SHARED
    with pytest.raises(RuntimeError, match="stop"), sharing(model, row_of()):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"


# --- encoders -------------------------------------------------------------------------------------------------------


@contextmanager
def rows_of(encoder: torch.nn.Module) -> Iterator[list[int]]:
    """The numbers of rows that run through the first layer of an encoder."""
    seen: list[int] = []
    layer = next(module for module in encoder.modules() if "Norm" in type(module).__name__)
    handle = layer.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[0]))
    yield seen
    handle.remove()


@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_a_query_is_encoded_once(name: str) -> None:
    torch.manual_seed(0)
    model = tiny.SEQ2SEQ[name]().eval()
    stream = torch.Generator().manual_seed(1)
    queries = torch.randint(4, tiny.VOCABULARY, (3, 6), generator=stream)[PROMPTS]
    mask = torch.ones_like(queries)
    mask[PROMPTS == 1, 4:] = 0
    inputs = {"input_ids": queries, "attention_mask": mask, "decoder_input_ids": samples()}
    assert row_support(model).prompts_once

    found = {}
    for shared in (None, EncodedOnce.of(PROMPTS, torch.from_numpy)):
        model.zero_grad()
        with sharing(model, shared), rows_of(model.get_encoder()) as rows:
            logits = model(**inputs).logits
        (logits * weights_of(logits)).sum().backward()
        assert rows == [6 if shared is None else 3]
        found[shared is None] = logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}
    torch.testing.assert_close(found[False][0], found[True][0], rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in found[True][1].values())
    for name, gradient in found[True][1].items():
        assert float((found[False][1][name] - gradient).abs().max()) <= 1e-5 * largest, name


# --- models that cannot ---------------------------------------------------------------------------------------------


def eager() -> Any:
    model = tiny.llama()
    model.set_attn_implementation("eager")
    return model


UNABLE: dict[str, Callable[[], Any]] = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=60, state_size=4)),
    "rwkv": lambda: RwkvForCausalLM(RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=60)),
    "jamba": lambda: JambaForCausalLM(
        JambaConfig(**SIZES, num_key_value_heads=1, num_experts=2, attn_layer_period=2, attn_layer_offset=1,
                    use_mamba_kernels=False, mamba_d_state=4)
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=60)),
    "eager": eager,
}  # fmt: skip


@pytest.mark.parametrize("name", UNABLE)
def test_a_model_that_says_something_else_is_found_out(name: str) -> None:
    torch.manual_seed(0)
    model = UNABLE[name]()
    assert not row_support(model).prompts_once
    assert not row_support(model).no_padding
    assert model.config._attn_implementation == UNABLE[name]().config._attn_implementation


def test_a_layer_that_looks_at_its_neighbours_is_found_out() -> None:
    model = made("llama")
    assert row_support(model).prompts_once
    assert row_support(model).no_padding
    layer = decoder_backbone(model).layers[0]
    layer.register_forward_hook(lambda _module, _args, out: out + 0.1 * torch.roll(out, 1, dims=1))
    assert not row_support(model).prompts_once
    assert not row_support(model).no_padding


def test_a_classifier_can() -> None:
    config = tiny.llama().config
    config.num_labels = 1
    assert row_support(AutoModelForSequenceClassification.from_config(config)).prompts_once
