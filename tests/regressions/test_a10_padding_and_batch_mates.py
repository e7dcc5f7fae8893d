"""Row A10: log-probs and values of a sample do not depend on batch mates, padding side or mini-batch size."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM, DataCollatorForLanguageModeling

from tests.tiny import IDS, PAD, SEQ2SEQ, VOCABULARY, config, tokenizer, with_value_head
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer

POSITIONS = {
    "gpt2": "absolute",
    "opt": "absolute, counted from the attention mask",
    "llama": "rotary",
    "gpt_neox": "rotary, half of the width",
    "bloom": "relative, ALiBi",
    "t5": "relative, learned",
    "bart": "absolute, encoder and decoder",
}


class WithLogits(PPOTrainer):
    """Goes the way of release 0.7, with full logits."""

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().loss(*args, **kwargs)


class PadsLeft(PPOTrainer):
    """A subclass that pads in front; for an encoder-decoder model it leaves that to the trainer."""

    def prepare_model_inputs(self, queries: list[torch.Tensor], responses: list[torch.Tensor]) -> Any:
        if self.is_encoder_decoder:
            return super().prepare_model_inputs(queries, responses)
        joined = [torch.cat(pair) for pair in zip(queries, responses, strict=True)]
        size = max(map(len, joined))
        masks = [torch.ones_like(ids) for ids in joined]
        keys = {"input_ids": joined, "attention_mask": masks}
        pad = torch.nn.functional.pad
        return {key: torch.stack([pad(x, (size - len(x), 0)) for x in rows]) for key, rows in keys.items()}


@functools.cache
def model_of(name: str) -> Any:
    if name != "bloom":
        return with_value_head(name)
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2, **IDS))
    model = AutoModelForCausalLMWithValueHead.from_pretrained(bloom)
    torch.nn.init.normal_(model.v_head.summary.weight, std=0.2)
    return model


@functools.cache
def trainer_of(name: str, side: str, mini_batch_size: int) -> PPOTrainer:
    """`side`: where the user's own collator pads; "own" is the trainer's padding, "hook" that of a subclass."""
    collator = None if side in ("own", "hook") else DataCollatorForLanguageModeling(tokenizer(side), mlm=False)
    options = config(seed=None, batch_size=12, mini_batch_size=mini_batch_size)
    side_of_tokenizer = side if side == "right" else "left"
    cls = PadsLeft if side == "hook" else PPOTrainer
    return cls(options, model_of(name), None, tokenizer(side_of_tokenizer), training_data_collator=collator)


def alone(name: str, query: torch.Tensor, response: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [R] and values [R] of a response, the plain way: one sample, no padding."""
    model = model_of(name).eval()
    with torch.no_grad():
        if name in SEQ2SEQ:
            logits, _, values = model(input_ids=query[None], decoder_input_ids=response[None])
            start, predicted = 0, response[1:]
        else:
            logits, _, values = model(input_ids=torch.cat((query, response))[None])
            start, predicted = len(query) - 1, response
    logits, values = logits[0, start : start + len(predicted)], values[0, start : start + len(predicted)]
    return torch.log_softmax(logits, -1).gather(1, predicted[:, None])[:, 0], values


tokens = st.integers(PAD, VOCABULARY - 1)  # padding and end-of-sequence ids inside a sample are tokens like others
samples = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=10), st.lists(tokens, min_size=1, max_size=10)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", POSITIONS)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@example([([5], [6]), ([7] * 10, [8] * 10)], "left", 6, True)
@example([([5], [6]), ([7] * 10, [8] * 10)], "left", 6, False)
@example([([5], [6]), ([7] * 10, [8] * 10)], "hook", 6, True)
@example([([5], [6]), ([7] * 10, [8] * 10)], "hook", 6, False)
@example([([0, 1], [1, 0, 0]), ([7] * 10, [8] * 10)], "own", 6, False)
@given(samples, st.sampled_from(["own", "left", "right", "hook"]), st.sampled_from([1, 2, 6]), st.booleans())
def test_a_sample_is_what_it_is_alone(
    name: str, drawn: list[tuple[list[int], list[int]]], side: str, mini_batch_size: int, with_logits: bool
) -> None:
    ours = trainer_of(name, side, mini_batch_size)
    queries = [torch.tensor(query) for query, _ in drawn]
    responses = [torch.tensor(response) for _, response in drawn]
    if name in SEQ2SEQ:
        start = model_of(name).pretrained_model.config.decoder_start_token_id
        responses = [torch.cat((torch.tensor([start]), response)) for response in responses]
    inputs = ours.prepare_model_inputs(queries, responses)
    with torch.no_grad():
        logprobs, logits, values, masks = ours.batched_forward_pass(
            ours.model, queries, responses, inputs, return_logits=with_logits
        )
    assert (logits is not None) == with_logits
    for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
        expected_logprobs, expected_values = alone(name, query, response)
        counted = masks[i].bool()
        torch.testing.assert_close(logprobs[i][counted], expected_logprobs, rtol=0, atol=1e-5)
        torch.testing.assert_close(values[i][counted], expected_values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", [PPOTrainer, WithLogits])
@pytest.mark.parametrize("name", POSITIONS)
def test_the_side_of_the_padding_leaves_the_training_alone(name: str, cls: type) -> None:
    """The forward of training sees the same: the same losses from both sides, over all epochs."""
    generator = torch.Generator().manual_seed(3)
    queries, responses = ([torch.randint(4, VOCABULARY, (n,), generator=generator) for n in ns] for ns in LENGTHS)
    seen = []
    for side in ("left", "right"):
        model_of.cache_clear()
        model = model_of(name)
        collator = DataCollatorForLanguageModeling(tokenizer(side), mlm=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ours = cls(config(), model, None, tokenizer(side), optimizer=optimizer, training_data_collator=collator)
        stats = ours.step(queries, responses, [1.0, -1.0, 0.5, 0.2])
        seen.append({key: value for key, value in stats.items() if isinstance(value, float) and "time/" not in key})
    for key, value in seen[0].items():
        assert seen[1][key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    model_of.cache_clear()
    trainer_of.cache_clear()


LENGTHS = ([2, 9, 4, 6], [8, 3, 1, 5])
