"""Several answers per query: the query is read once, rows that have ended leave, and the answers are the same."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    RwkvConfig,
    StoppingCriteria,
    T5Config,
)

from tests.sampling.generation_tools import EOS, VOCAB, CountUp, answer, ragged_queries, same, sampler_of, tiny_gpt2
from trl_step.sampling import prompt_cache

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": 2}
CONFIGS = {
    "gpt2": GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=128, initializer_range=0.6, **COMMON),
    "llama": LlamaConfig(num_key_value_heads=2, initializer_range=0.3, **SIZES, **COMMON),
    "sliding": MistralConfig(num_key_value_heads=2, sliding_window=6, initializer_range=0.3, **SIZES, **COMMON),
    "gemma": Gemma3TextConfig(
        num_key_value_heads=1, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.3, **SIZES, **COMMON,
    ),
    "t5": T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, initializer_factor=3.0,
        vocab_size=VOCAB, pad_token_id=0, eos_token_id=EOS,
    ),
    "mamba": MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **COMMON),
    "rwkv": RwkvConfig(hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, **COMMON),
}  # fmt: skip
CACHED = ["gpt2", "llama", "sliding", "gemma", "t5"]


def model_of(name: str) -> torch.nn.Module:
    torch.manual_seed(1)
    auto = AutoModelForSeq2SeqLM if CONFIGS[name].is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(CONFIGS[name]).eval()


def seen_tokens(model: torch.nn.Module) -> Counter:
    """Counts the tokens that enter an embedding from now on."""
    count: Counter = Counter()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == VOCAB:
            module.register_forward_hook(lambda _m, args, _o: count.update(tokens=args[0].numel()))
    return count


@pytest.mark.parametrize("name", list(CONFIGS))
def test_greedy_answers_are_those_of_separate_calls(name: str) -> None:
    """Limits differ and end tokens occur: rows leave in between."""
    model, queries, limits = model_of(name), ragged_queries(3, 20, 11, 2), [30, 5, 12, 20]
    alone = [answer(model, [query], max_new_tokens=limit)[0] for query, limit in zip(queries, limits, strict=True)]
    samples = sampler_of(model).sample(
        queries, 3, do_sample=False, max_new_tokens=[limit for limit in limits for _ in range(3)]
    )
    assert same(samples.responses, [row for row in alone for _ in range(3)])
    assert same(samples.queries, [query for query in queries for _ in range(3)])
    assert samples.group_ids == [i for i in range(4) for _ in range(3)]


@pytest.mark.parametrize("name", CACHED)
def test_a_query_is_read_once(name: str) -> None:
    model, queries = model_of(name), ragged_queries(20, 17)
    model.generation_config.eos_token_id = None
    sampler = sampler_of(model, eos=None)
    settings = {"do_sample": True, "max_new_tokens": 3, "top_k": 0}
    sampler.sample(queries, 2, **settings)  # the model is asked before its first batch
    count = seen_tokens(model)
    sampler.sample(queries, 8, **settings)
    # two rows of 20 columns (the encoder reads all of them, the cache holds all but the last), then 16 rows
    assert count["tokens"] == (2 * 20 if name == "t5" else 2 * 19) + 16 * 3


def test_rows_that_have_ended_leave_the_batch() -> None:
    model = tiny_gpt2(n_positions=128)
    model.generation_config.eos_token_id = None
    queries = [torch.tensor([2 + i % 3]) for i in range(8)]
    limits = [8] * 6 + [40, 80]
    sampler = sampler_of(model, eos=None)
    sampler.sample(queries, max_new_tokens=limits, do_sample=False)
    count = seen_tokens(model)
    samples = sampler.sample(queries, max_new_tokens=limits, do_sample=False)
    assert [len(response) for response in samples.responses] == limits
    assert count["tokens"] == 8 * 8 + 2 * 72, "two rows are left after 8 tokens; so few are not made fewer"


def test_a_minimum_of_new_tokens_keeps_all_rows() -> None:
    """`generate` counts it from where it begins."""
    model, queries = tiny_gpt2(n_positions=128), ragged_queries(9, 12, 10, 11) * 2
    got = answer(model, queries, max_new_tokens=[8, 8, 8, 8, 40, 40, 40, 40], min_new_tokens=30)
    assert [len(row) for row in got[:4]] == [8] * 4
    assert all(len(row) >= 30 for row in got[4:])


class Alternating(StoppingCriteria):
    """A criterion of a user that counts its rows."""

    def __call__(self, input_ids, scores, **kwargs):
        assert input_ids.shape[0] == 8
        return input_ids[:, -1] % 5 == 0


def test_a_criterion_of_the_user_sees_all_rows() -> None:
    queries = [torch.tensor([2 + i]) for i in range(8)]
    got = answer(
        tiny_gpt2(), queries, max_new_tokens=20, stopping_criteria=[Alternating()], logits_processor=[CountUp()]
    )
    assert [len(row) for row in got] == [3, 2, 1, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("name", ["mamba", "rwkv"])
def test_a_model_without_such_a_cache_says_so_once(name: str) -> None:
    model, queries = model_of(name), ragged_queries(9, 9)
    sampler = sampler_of(model)
    with pytest.warns(UserWarning, match="a prompt is read once for each of its answers"):
        sampler.sample(queries, 2, max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.sample(queries, 2, max_new_tokens=2)


def test_one_answer_each_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(model_of("mamba"), ragged_queries(9, 9))


def test_samples_are_distributed_as_those_of_separate_calls() -> None:
    """2,000 draws of two tokens: shares of the pairs within 4.5 standard deviations of their probabilities."""
    model, query, draws = tiny_gpt2(initializer_range=0.2), torch.arange(2, 14), 2000
    torch.manual_seed(0)
    samples = sampler_of(model).sample([query], draws, do_sample=True, top_k=0, max_new_tokens=2, eos_token_id=99)
    with torch.no_grad():
        first = model(query[None]).logits[0, -1].softmax(0)
        rows = torch.cat((query.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]), dim=1)
        pairs = first[:, None] * model(rows).logits[:, -1].softmax(1)
    # an end token ends the answer; what follows it is not drawn
    pairs[EOS] = 0
    found = torch.zeros(VOCAB, VOCAB)
    for response in samples.responses:
        if len(response) == 2:
            found[response[0], response[1]] += 1
    deviation = (pairs * (1 - pairs) / draws).sqrt()
    assert bool(((found / draws - pairs).abs() <= 4.5 * deviation + 2 / draws).all())


def test_the_probe_leaves_random_streams_alone() -> None:
    model, state = tiny_gpt2(), torch.get_rng_state()
    assert prompt_cache.selectable(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("n", "settings", "words"), [
    (0, {}, "n=0"),
    (2, {"num_return_sequences": 3}, "two names of one setting"),
    (2, {"num_beams": 2}, "num_beams=1"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(n: int, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampler_of(tiny_gpt2()).sample(ragged_queries(3), n, **settings)
