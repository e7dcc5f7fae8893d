"""Steps in which several samples have one query: it runs once, and the numbers are those of every sample alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from tests import tiny
from tests.models.shortcuts.test_shared_prompts import KINDS, UNABLE, made
from tests.trainer.plain_step import Samples, both, largest_difference, moved_a_little
from trl_step import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOTrainer,
    create_reference_model,
)
from trl_step.models import PreTrainedModelWrapper, inner_model
from trl_step.models.inner_model import decoder_backbone
from trl_step.models.shortcuts import shared_prompts

PROMPTS = (0, 1, 0, 2, 1, 0, 2, 3)
"""Of eight samples: three of one prompt, two of two others, and one by itself."""
LENGTHS = (12, 9, 14, 10)


def samples(seed: int = 1, seq2seq: bool = False) -> Samples:
    stream = torch.Generator().manual_seed(seed)

    def ids(n: int) -> torch.Tensor:
        return torch.randint(4, tiny.VOCABULARY, (n,), generator=stream)

    prompts = [ids(n) for n in LENGTHS]
    queries = [prompts[i] for i in PROMPTS]
    responses = [ids(n) for n in (5, 3, 7, 2, 4, 6, 8, 1)]
    if seq2seq:
        responses = [torch.cat((tokens_of_start(), response)) for response in responses]
    masks = [torch.ones_like(response) for response in responses]
    masks[2][2] = masks[5][3] = 0
    scores = [torch.tensor(x) for x in (1.0, -0.5, 0.25, 0.0, 0.75, -1.0, 0.5, 2.0)]
    predicted = [len(response) - seq2seq for response in responses]
    noise = [0.15 * torch.randn(n, generator=stream) for n in predicted]
    return Samples(queries, responses, scores, masks, [0.0] * 8, noise, noise)


def tokens_of_start() -> torch.Tensor:
    return torch.tensor([tiny.PAD])


def value_head(model: Any) -> Any:
    wrapper: Any = (
        AutoModelForSeq2SeqLMWithValueHead if model.config.is_encoder_decoder else AutoModelForCausalLMWithValueHead
    )
    torch.manual_seed(1)
    wrapped = wrapper.from_pretrained(model)
    torch.nn.init.normal_(wrapped.v_head.summary.weight, std=0.2)
    return wrapped


class Layers:
    """[rows, columns] of every pass through the first layer of a model."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        layers: Any = next(m for m in decoder_backbone(model).modules() if isinstance(m, torch.nn.ModuleList))
        layers[0].register_forward_hook(lambda _module, args, _output: self.shapes.append(tuple(args[0].shape[:2])))


# --- against a loop over samples ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_one_update_is_that_of_a_loop_over_samples(kind: str) -> None:
    model = value_head(made(kind))
    reference = None if kind == "lora" else moved_a_little(model)
    layers = Layers(model.pretrained_model)
    found = both(model, reference, samples(), init_kl_coef=0.1)
    assert largest_difference(found) < 1e-5
    assert layers.shapes[-1] == (1, 12 + 9 + 14 + 11 + sum((5, 3, 7, 2, 4, 6, 8)))


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_decoder() -> None:
    torch.manual_seed(0)
    model = value_head(tiny.t5())
    found = both(model, moved_a_little(model), samples(seq2seq=True), init_kl_coef=0.1)
    assert largest_difference(found) < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_single_samples_among_groups() -> None:
    """Four samples of one prompt among four that have a prompt of their own."""
    whole = samples()
    queries = [whole.queries[0], *whole.queries[1:2], whole.queries[0], whole.queries[0], whole.queries[3]]
    queries += [torch.arange(4, 24), whole.queries[0], torch.arange(30, 33)]
    model = value_head(made("llama"))
    found = both(model, moved_a_little(model), whole._replace(queries=queries), init_kl_coef=0.1)
    assert largest_difference(found) < 1e-5


# --- against the same step with sharing off -------------------------------------------------------------------------


def two_steps(
    share: bool, make: Callable[..., PPOTrainer], seq2seq: bool = False, draw: Callable[..., Samples] = samples
) -> Any:
    torch.manual_seed(0)
    ours = make(share_prompts=share)
    sets = [draw(seed, seq2seq) for seed in (1, 2)]
    stats = [ours.step(one.queries, one.responses, one.scores, one.masks) for one in sets]
    names = (
        "objective/kl",
        "objective/entropy",
        "ppo/policy/policykl",
        "ppo/loss/total",
        "ppo/val/mean",
        "ppo/val/vpred",
    )
    return [{name: each[name] for name in names if name in each} for each in stats], tiny.weights(ours.model)


def with_sgd(model: Any, reference: Any = None, value_model: Any = None, **options: Any) -> PPOTrainer:
    """Adam would blow up gradients that are 0 but for rounding."""
    parts = [part for part in (model, value_model) if part is not None]
    trained = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    settings = tiny.config(**{"mini_batch_size": 8, "ppo_epochs": 2, **options})
    optimizer = torch.optim.SGD(trained, lr=0.05)
    return PPOTrainer(settings, model, reference, tiny.tokenizer(), optimizer=optimizer, value_model=value_model)


def shared_bottom(**options: Any) -> PPOTrainer:
    model = value_head(made("gpt2"))
    return with_sgd(model, create_reference_model(model, num_shared_layers=1), **options)


def lora_on_top(**options: Any) -> PPOTrainer:
    config = LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")
    return with_sgd(tiny.with_value_head("llama", peft_config=config), **options)


def separate_critic(**options: Any) -> PPOTrainer:
    return with_sgd(value_head(made("gpt2")), value_model=value_head(made("gemma3")), **options)


def of(kind: str) -> Callable[..., PPOTrainer]:
    return lambda **options: with_sgd(value_head(made(kind)), **options)


WAYS: dict[str, tuple[Callable[..., PPOTrainer], dict[str, Any]]] = {
    "small mini-batches": (of("llama"), {"mini_batch_size": 4, "gradient_accumulation_steps": 2}),
    "two of a mini-batch": (of("gpt2"), {"mini_batch_size": 2}),
    "exact divergence": (of("gpt2"), {"kl_penalty": "full"}),
    "forward_tokens": (of("mistral"), {"forward_tokens": 40}),
    "checkpointing": (of("gemma3"), {"gradient_checkpointing": True}),
    "frozen bottom": (shared_bottom, {}),
    "frozen bottom, parts": (shared_bottom, {"forward_tokens": 40}),
    "frozen bottom, exact divergence": (shared_bottom, {"kl_penalty": "full"}),
    "adapter on top": (lora_on_top, {}),
    "separate critic": (separate_critic, {}),
    "separate critic, checkpointing": (separate_critic, {"gradient_checkpointing": True}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
def test_statistics_and_weights_are_those_without_sharing(way: str) -> None:
    make, options = WAYS[way]
    shared, plain = (two_steps(share, lambda **more: make(**options, **more)) for share in (True, False))
    for one, other in zip(shared[0], plain[0], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(shared[1], plain[1], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", tiny.SEQ2SEQ)
def test_statistics_and_weights_of_an_encoder_decoder(name: str) -> None:
    shared, plain = (
        two_steps(share, lambda **more: with_sgd(tiny.with_value_head(name), **more), seq2seq=True)
        for share in (True, False)
    )
    for one, other in zip(shared[0], plain[0], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(shared[1], plain[1], rtol=1e-5, atol=1e-5)


# --- against the same step with padding ------------------------------------------------------------------------------


def ragged(seed: int = 1, _seq2seq: bool = False) -> Samples:
    """Different queries; most of what padded rows hold is padding."""
    stream = torch.Generator().manual_seed(seed)
    one = samples(seed)
    lengths = (3, 30, 4, 3, 12, 5, 4, 3)
    return one._replace(queries=[torch.randint(4, tiny.VOCABULARY, (n,), generator=stream) for n in lengths])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_one_update_without_padding_is_that_of_a_loop_over_samples(kind: str) -> None:
    model = value_head(made(kind))
    reference = None if kind == "lora" else moved_a_little(model)
    layers, one = Layers(model.pretrained_model), ragged()
    found = both(model, reference, one, init_kl_coef=0.1, padding_free=True)
    assert largest_difference(found) < 1e-5
    assert layers.shapes[-1] == (1, 64 + 36)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
def test_statistics_and_weights_are_those_with_padding(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates are plain SGD, so that the weights show the gradients."""
    make, options = WAYS[way]
    packed, plain = (
        two_steps(False, lambda free=free, **more: make(**options, padding_free=free, **more), draw=ragged)
        for free in (True, False)
    )
    for one, other in zip(packed[0], plain[0], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(packed[1], plain[1], rtol=1e-5, atol=1e-5)


# --- what runs ------------------------------------------------------------------------------------------------------


def shapes_of_a_step(
    model: Any = None, cls: type[PPOTrainer] = PPOTrainer, one: Samples | None = None, **options: Any
) -> Any:
    model = value_head(made("gpt2")) if model is None else model
    ours = tiny.trainer(model, cls=cls, **{"ppo_epochs": 1, "mini_batch_size": 8, **options})
    layers, one = Layers(model.pretrained_model), samples() if one is None else one
    ours.step(one.queries, one.responses, one.scores)
    return layers.shapes


PACKED = [(1, 12 + 9 + 14 + 11 + sum((5, 3, 7, 2, 4, 6, 8)))] * 2
PADDED = [(8, 22)] * 2


def test_a_query_runs_once_in_the_rollout_and_in_training() -> None:
    assert shapes_of_a_step() == PACKED


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [{"share_prompts": False}, {"exact_v07": True}, {"pad_for_acceleration": True, "pad_max_len": 22}],
    ids=str,
)
def test_nothing_is_shared_if_a_setting_forbids_it(options: dict[str, Any]) -> None:
    assert shapes_of_a_step(**options) == PADDED


def test_a_mini_batch_has_no_padding() -> None:
    assert shapes_of_a_step(one=ragged(), padding_free=True) == [(1, 100)] * 2
    assert shapes_of_a_step(one=ragged()) == [(8, 33)] * 2, "a CPU pads"


def test_a_row_takes_no_more_samples_than_padded_ones_would() -> None:
    """Attention is padded all the same: in the rollout long samples go together."""
    np.random.seed(0)
    one = ragged()
    ends = [len(query) + len(response) for query, response in zip(one.queries, one.responses, strict=True)]
    rollout = shapes_of_a_step(one=one, padding_free=True, mini_batch_size=2)[:4]
    longest = sorted(ends, reverse=True)
    expected = [longest[i : i + 2] for i in range(0, 8, 2)]
    assert rollout == [(1, sum(two)) if sum(two) <= 1.6 * two[0] else (2, two[0]) for two in expected]
    assert {rows for rows, _ in rollout} == {1, 2}


def test_little_padding_stays() -> None:
    one = samples()
    equal = one._replace(queries=[torch.full((9,), 4 + i) for i in range(8)], responses=[torch.arange(4, 14)] * 8)
    assert shapes_of_a_step(one=equal, padding_free=True) == [(8, 19)] * 2


@pytest.mark.parametrize("name", ["bloom", "eager"])
def test_a_model_that_cannot_says_so_and_is_padded(name: str) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="padding_free=True has no effect: .* says something else"):
        shapes = shapes_of_a_step(value_head(copy.deepcopy(UNABLE[name]())), one=ragged(), padding_free=True)
    assert shapes == [(8, 33)] * 2


def test_an_encoder_decoder_is_padded() -> None:
    with pytest.warns(UserWarning, match="T5ForConditionalGeneration is an encoder-decoder model"):
        trainer = tiny.trainer("t5", padding_free=True)
    assert not trainer._rows.no_padding


def test_a_cuda_device_leaves_padding_out_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tiny.trainer(value_head(made("gpt2")))
    monkeypatch.setattr(type(ours.accelerator), "device", torch.device("cuda"))
    for chosen, packs in ((None, True), (False, False)):
        ours.config.padding_free = chosen
        del ours._rows  # asked anew
        assert ours._rows.no_padding == packs


def test_flash_attention_is_asked_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CPU has it: a stand-in that fails until the model was moved."""
    arrived: list[nn.Module] = []

    def attend(_module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        if not arrived:
            raise RuntimeError("flash attention on a CPU")
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    def to(self: nn.Module, *args: Any, **options: Any) -> nn.Module:
        arrived.append(self)
        return moved(self, *args, **options)

    moved = PreTrainedModelWrapper.to
    AttentionInterface.register("on_devices_only", attend)
    AttentionMaskInterface.register("on_devices_only", lambda **_: None)
    for module in (inner_model, shared_prompts):
        monkeypatch.setattr(module, "FLASH_KERNELS", ("on_devices_only",))
    monkeypatch.setattr(inner_model, "on_host", lambda _: not arrived)
    model = value_head(made("llama").to(torch.bfloat16))
    model.pretrained_model.set_attn_implementation("on_devices_only")
    monkeypatch.setattr("trl_step.trainer.engine.models.needs_no_copy", lambda _: False)
    monkeypatch.setattr(PreTrainedModelWrapper, "to", to)
    ours = tiny.trainer(model, padding_free=True)
    assert ours._rows.no_padding
    assert arrived[0] is model


def test_whole_groups_run_together_in_the_rollout() -> None:
    """A mini-batch of two holds 44 tokens at most; a group of three runs at once, as it has fewer."""
    np.random.seed(0)
    shapes = shapes_of_a_step(mini_batch_size=2)
    rollout = [(1, 14 + 2 + 8), (1, 12 + 5 + 7 + 6), (1, 9 + 3 + 4), (1, 11)]
    assert shapes[:4] == rollout


def test_parts_of_a_mini_batch_hold_whole_groups() -> None:
    """Under a limit of 40 tokens, whatever order the samples of the mini-batch have."""
    np.random.seed(0)
    shapes = shapes_of_a_step(forward_tokens=40)
    assert shapes[-3:] == [(1, 14 + 2 + 8), (1, 12 + 5 + 7 + 6), (1, 9 + 3 + 4 + 11)]


def test_short_queries_are_padded_as_before() -> None:
    one = samples()
    short = one._replace(queries=[query[:1] for query in one.queries], responses=[torch.arange(4, 14)] * 8)
    assert shapes_of_a_step(one=short) == [(8, 11)] * 2


def test_different_queries_are_padded_as_before() -> None:
    one = samples()
    stream = torch.Generator().manual_seed(5)
    queries = [torch.randint(4, tiny.VOCABULARY, (len(query),), generator=stream) for query in one.queries]
    assert shapes_of_a_step(one=one._replace(queries=queries)) == PADDED


@pytest.mark.parametrize("name", ["bloom", "eager"])
def test_a_model_that_cannot_runs_as_before(name: str) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(UNABLE[name]())
    assert shapes_of_a_step(value_head(model)) == PADDED


class MoreInputs(PPOTrainer):
    """Hands the model something that a row does not have."""

    def prepare_model_inputs(self, *lists: Any) -> Any:
        inputs = dict(super().prepare_model_inputs(*lists))
        return {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}


def test_inputs_of_the_user_s_own_are_not_packed() -> None:
    assert shapes_of_a_step(cls=MoreInputs) == PADDED
