"""Tiny models, scripted sampling and a watcher of batches for the tests of generation."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    StoppingCriteria,
)

from trl_step.sampling.local import LocalSampler

PAD = 0
EOS = 1
VOCAB = 23


def tiny_gpt2(seed: int = 0, **settings) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    settings = {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "initializer_range": 0.6} | settings
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, eos_token_id=EOS, bos_token_id=2, **settings)).eval()


def tiny_bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=VOCAB,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=None,
        init_std=0.6,
        max_position_embeddings=64,
    )
    return BartForConditionalGeneration(config).eval()


def ragged_queries(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCAB, (length,), generator=generator) for length in lengths]


def sampler_of(model, pad: int | None = PAD, eos: int | None = EOS, **settings) -> LocalSampler:
    return LocalSampler(model, SimpleNamespace(pad_token_id=pad, eos_token_id=eos), **settings)


def answer(model, queries, eos: int | None = EOS, **settings) -> list[torch.Tensor]:
    """Greedy answers of at most eight tokens."""
    settings = {"max_new_tokens": 8, "do_sample": False} | settings
    return [found.tokens for found in sampler_of(model, eos=eos).answers(queries, **settings)]


def one_by_one(model, queries, new_tokens: int = 8, **settings):
    """The plain loop: no batch, no padding."""
    return [
        model.generate(
            input_ids=query[None],
            attention_mask=torch.ones_like(query)[None],
            do_sample=False,
            max_new_tokens=new_tokens,
            pad_token_id=PAD,
            **settings,
        )[0]
        for query in queries
    ]


def same(left, right) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


class BatchWatcher:
    """Records the shape of every batch; raises an out-of-memory error above `most_rows`."""

    def __init__(self, model, most_rows: int | None = None, error: Exception | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.arguments: list[dict] = []
        plain = model.generate

        def generate(**kwargs):
            if most_rows is not None and len(kwargs["input_ids"]) > most_rows:
                raise error or torch.OutOfMemoryError("no room")
            self.shapes.append(tuple(kwargs["input_ids"].shape))
            self.arguments.append(kwargs)
            return plain(**kwargs)

        model.generate = generate


class StopAt(StoppingCriteria):
    """Ends a row behind the token `stop`."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == self.stop


class CountUp(LogitsProcessor):
    """Makes greedy decoding write the previous token plus one, modulo the vocabulary: answers known by hand."""

    def __call__(self, input_ids, scores):
        return torch.nn.functional.one_hot((input_ids[:, -1] + 1) % VOCAB, VOCAB).float()


def count_up(model, queries, **settings):
    return answer(model, queries, logits_processor=[CountUp()], **settings)
