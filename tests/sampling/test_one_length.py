"""Models that padding changes: their prompts run beside others of the same length only, or alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from tests.sampling.generation_tools import (
    EOS,
    PAD,
    VOCAB,
    BatchWatcher,
    answer,
    one_by_one,
    ragged_queries,
    same,
    tiny_bart,
    tiny_gpt2,
)
from trl_step.models import probes
from trl_step.models.probes import BatchMates, batch_mates

IDS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": EOS}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, **IDS}


def rwkv() -> Any:
    """Its cached step mixes the rows of a batch."""
    return RwkvForCausalLM(
        RwkvConfig(hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=64, **IDS)
    )


def minimax() -> Any:
    """Linear attention, whose state loses the padding mask: its second new token differs."""
    layers = {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    return MiniMaxForCausalLM(MiniMaxConfig(**SIZES, num_key_value_heads=1, head_dim=16, **layers, **experts))


def bart_decoder() -> Any:
    """It counts positions from the first column."""
    sides = {f"decoder_{k}": v for k, v in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}
    return BartForCausalLM(BartConfig(d_model=32, max_position_embeddings=64, is_decoder=True, **sides, **IDS))


def wide(build: Any) -> Any:
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4)
    return model.eval()


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (rwkv, [(1, 7), (1, 7), (1, 4), (1, 2), (1, 2)]),
        (minimax, [(2, 7), (1, 4), (2, 2)]),
        (bart_decoder, [(2, 7), (1, 4), (2, 2)]),
    ],
)
def test_an_answer_is_that_of_its_prompt_alone(build, shapes):
    model, queries = wide(build), ragged_queries(2, 7, 4, 7, 2)
    alone = [found[len(query) :] for query, found in zip(queries, one_by_one(model, queries), strict=True)]
    ends = [int((row == EOS).int().argmax()) + 1 if (row == EOS).any() else len(row) for row in alone]
    alone = [row[:end] for row, end in zip(alone, ends, strict=True)]
    watcher = BatchWatcher(model)
    assert same(answer(model, queries, pad_to_multiple_of=4), alone)
    assert watcher.shapes == shapes


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_bart])
def test_other_models_run_prompts_of_all_lengths_together_and_are_asked_once(build, monkeypatch):
    model = build()
    asked: list[Any] = []
    question = probes._batch_mates
    monkeypatch.setattr(probes, "_batch_mates", lambda *given: asked.append(given) or question(*given))
    watcher = BatchWatcher(model)
    answer(model, ragged_queries(3))
    assert not asked  # a prompt alone
    for _ in range(2):
        answer(model, ragged_queries(2, 7, 4))
    assert len(asked) == 1
    assert watcher.shapes == [(1, 3), (3, 7), (3, 7)]


def test_asking_leaves_modes_and_random_streams_alone():
    model = tiny_gpt2().train()
    before = torch.get_rng_state()
    assert batch_mates(model, PAD) is BatchMates.ANY
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
