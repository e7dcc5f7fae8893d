"""`LocalSampler` against one plain `model.generate` per query."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteriaList, StopStringCriteria

from tests.environment.environment_tools import byte_tokenizer
from tests.sampling.generation_tools import (
    EOS,
    PAD,
    BatchWatcher,
    StopAt,
    answer,
    count_up,
    one_by_one,
    ragged_queries,
    same,
    tiny_bart,
    tiny_gpt2,
)
from trl_step.models.probes import BatchMates, batch_mates
from trl_step.sampling import decode


def test_ragged_batch_equals_single_queries() -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 11, 1, 6, 6)
    want = [row[len(query) :] for row, query in zip(one_by_one(model, queries), queries, strict=True)]
    assert same(answer(model, queries), want)


def test_encoder_decoder_equals_single_queries() -> None:
    model, queries = tiny_bart(), ragged_queries(3, 9, 5)
    got = answer(model, queries)
    assert same(got, one_by_one(model, queries))
    assert all(row[0] == model.config.decoder_start_token_id for row in got)


def test_value_head_wrapper_is_taken() -> None:
    model, queries = tiny_gpt2(), [torch.tensor([2, 3, 4]), torch.tensor([9])]

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_model = model

        def generate(self, **kwargs):
            return self.pretrained_model.generate(**kwargs)

    model.generation_config.eos_token_id = [EOS, 7]
    assert [row.tolist() for row in count_up(Wrapper(), queries, max_new_tokens=4)] == [[5, 6, 7], [10, 11, 12, 13]]


def test_own_limit_of_each_query() -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 11, 1, 6)
    limits = [1, 9, 4, 2]
    got = answer(model, queries, max_new_tokens=limits, eos=None, eos_token_id=-1)
    full = answer(model, queries, max_new_tokens=9, eos=None, eos_token_id=-1)
    assert [len(row) for row in got] == limits
    assert same(got, [row[:limit] for row, limit in zip(full, limits, strict=True)])


def test_generation_stops_when_every_row_has_its_tokens() -> None:
    """The row that may go on to 6 ends by itself after 3; the other one had its 2 by then."""
    model = tiny_gpt2()
    assert batch_mates(model, PAD) is BatchMates.ANY  # it is asked before its first batch
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    got = count_up(model, [torch.tensor([9]), torch.tensor([3])], max_new_tokens=[2, 6], eos=6)
    assert [row.tolist() for row in got] == [[10, 11], [4, 5, 6]]
    assert len(forwards) == 3


def test_transformers_does_not_ask_for_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves out a mask of ones itself, and then finds the padding after the end of a row."""
    said: list[str] = []
    monkeypatch.setattr("transformers.modeling_utils.logger.warning_once", said.append)
    model, queries = tiny_gpt2(pad_token_id=PAD), [torch.tensor([9]), torch.tensor([3])]
    criteria = StoppingCriteriaList([StopAt(10)])  # rows stay to the end of the batch
    assert [len(row) for row in count_up(model, queries, max_new_tokens=6, stopping_criteria=criteria)] == [1, 6]
    assert said == []
    model(input_ids=torch.tensor([[PAD, 3]]))
    assert len(said) == 1, "a user's own pass is asked as before"


def test_max_length_counts_the_own_prompt_only() -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 11)
    got = answer(model, queries, max_new_tokens=None, max_length=14, eos=None, eos_token_id=-1)
    assert [len(row) for row in got] == [11, 3]
    with pytest.raises(ValueError, match="query 1 has 11 tokens"):
        answer(model, queries, max_new_tokens=None, max_length=11)


def test_generation_config_is_merged_and_left_alone() -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 6)
    config = GenerationConfig(max_new_tokens=5, eos_token_id=9, max_length=50)
    before = config.to_dict()
    got = answer(model, queries, max_new_tokens=None, generation_config=config, min_new_tokens=5)
    assert [len(row) for row in got] == [5, 5]
    assert config.to_dict() == before


def test_stopping_criteria_end_each_row_by_itself() -> None:
    queries = [torch.tensor([2, 3, 4]), torch.tensor([9]), torch.tensor([5, 6])]
    kwargs = {"stopping_criteria": StoppingCriteriaList([StopAt(7), StopAt(11)])}
    got = count_up(tiny_gpt2(), queries, max_new_tokens=[4, 4, 2], **kwargs)
    assert [row.tolist() for row in got] == [[5, 6, 7], [10, 11], [7]]
    assert len(kwargs["stopping_criteria"]) == 2


def test_a_criterion_may_go_on_saying_stop() -> None:
    queries = [torch.tensor([2, 3, 4]), torch.tensor([9])]
    got = count_up(
        tiny_gpt2(), queries, max_new_tokens=4, stopping_criteria=[lambda ids, scores: (ids == 6).any(dim=1)]
    )
    assert [row.tolist() for row in got] == [[5, 6], [10, 11, 12, 13]]


def test_no_gradients_and_no_negative_ids_reach_the_model() -> None:
    model = tiny_gpt2()
    seen = []
    plain = model.generate
    model.generate = lambda **kwargs: seen.append((torch.is_grad_enabled(), kwargs["eos_token_id"])) or plain(**kwargs)
    answer(model, ragged_queries(2), eos_token_id=-1)
    assert seen == [(False, [EOS])]


def test_a_criterion_may_answer_with_one_bool() -> None:
    queries = [torch.tensor([2, 3, 4]), torch.tensor([9])]
    got = count_up(tiny_gpt2(), queries, stopping_criteria=[lambda ids, scores: ids.shape[1] >= 3 + 3])
    assert [row.tolist() for row in got] == [[5, 6, 7], [10, 11, 12]]


def test_beam_search() -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 11, 1)
    got = answer(model, queries, max_new_tokens=[4, 2, 4], num_beams=3)
    want = one_by_one(model, queries, new_tokens=4, num_beams=3)
    want = [row[len(query) :] for row, query in zip(want, queries, strict=True)]
    assert torch.equal(got[0], want[0])
    assert len(got[1]) <= 2
    assert torch.equal(got[2], want[2])


def test_dropout_is_off_and_every_mode_restored() -> None:
    """Row A2: greedy tokens are those of eval mode although the policy is being trained."""
    model, queries = tiny_gpt2(embd_pdrop=0.9, resid_pdrop=0.9, attn_pdrop=0.9), ragged_queries(3, 11)
    want = answer(model, queries)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert same(answer(model, queries), want)
    assert [module.training for module in model.modules()] == modes


def test_modes_are_restored_after_an_error() -> None:
    model = tiny_gpt2().train()
    with pytest.raises(ZeroDivisionError):
        answer(model, ragged_queries(3), stopping_criteria=[lambda *_: 1 / 0])
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


def test_same_seed_same_sample() -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 11, 1, 6, 6, 2)

    def sample():
        torch.manual_seed(5)
        return answer(model, queries, do_sample=True, top_k=0)

    assert same(sample(), sample())


def test_pad_to_multiple_of() -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 5)
    want = answer(model, queries)
    watcher = BatchWatcher(model)
    assert same(answer(model, queries, pad_to_multiple_of=8), want)
    assert watcher.shapes == [(2, 8)]


def test_kept_tail_reaches_the_longest_row() -> None:
    queries = [torch.tensor([2, 3, 4]), torch.tensor([9])]
    model = tiny_gpt2()
    model.generation_config.eos_token_id = 12
    kept = count_up(model, queries, eos=6, remove_padding=False)
    assert [row.tolist() for row in kept] == [[5, 6, PAD], [10, 11, 12]]


def test_no_end_token_with_the_tail_kept_generates_through_it() -> None:
    queries, model = [torch.tensor([20])], tiny_gpt2()
    model.generation_config.eos_token_id = 22
    kept = count_up(model, queries, eos_token_id=-1, remove_padding=False, max_new_tokens=5)
    assert kept[0].tolist() == [21, 22, 0, 1, 2]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_other_memory_errors_are_known(error: Exception) -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 11, 1, 6)
    want = answer(model, queries)
    BatchWatcher(model, most_rows=1, error=error)
    assert same(answer(model, queries), want)


def test_weights_spread_over_processes_keep_batches_by_count() -> None:
    model = tiny_gpt2()
    watcher = BatchWatcher(model)
    answer(model, ragged_queries(*[3] * 9), synced_gpus=False, batch_size=4)
    assert [rows for rows, _ in watcher.shapes] == [9]
    watcher.shapes.clear()
    with suppress(RuntimeError, ValueError):  # the first synchronisation needs a process group
        answer(model, ragged_queries(*[3] * 9), synced_gpus=True, batch_size=4)
    assert all(rows <= 4 for rows, _ in watcher.shapes)
    assert watcher.shapes


@pytest.mark.parametrize(
    ("queries", "settings", "error", "words"),
    [
        ([torch.tensor([2, 3]), torch.tensor([], dtype=torch.long)], {}, ValueError, "query 1 .*at least one token"),
        ([torch.tensor([[2, 3]])], {}, ValueError, r"query 0 .*shape \(1, 2\)"),
        ([torch.tensor([2.0])], {}, TypeError, "query 0 .*integer"),
        ([[2, 3]], {}, TypeError, "query 0 .*list"),
        ([torch.tensor([2])], {"max_new_tokens": [3, 3]}, ValueError, "2 entries for 1 queries"),
        ([torch.tensor([2])], {"max_new_tokens": 0}, ValueError, "may get 0 new ones"),
        ([torch.tensor([2])], {"batch_size": 0}, ValueError, "batch_size=0"),
        ([torch.tensor([2])], {"attention_mask": None}, ValueError, "attention_mask"),
        ([torch.tensor([2])], {"num_beams": 2, "return_logprobs": True}, ValueError, "num_beams"),
    ],
)
def test_bad_input_is_named(queries, settings, error, words) -> None:
    with pytest.raises(error, match=words):
        answer(tiny_gpt2(), queries, **settings)


def test_no_queries_no_answers() -> None:
    assert answer(tiny_gpt2(), []) == []


@pytest.mark.parametrize("place", ["argument", "a single string", "config"])
def test_stop_strings_of_transformers_leave_no_padding(place: str) -> None:
    """They end rows inside `generate`; what follows there is padding, even where no end id is configured."""
    queries, tokenizer = [torch.tensor([2, 3, 4]), torch.tensor([9])], byte_tokenizer(bos=False)
    stop = tokenizer.decode([5, 6])
    settings = {"stop_strings": stop if place == "a single string" else [stop]}
    if place == "config":
        settings = {"generation_config": GenerationConfig(**settings)}
    got = count_up(tiny_gpt2(), queries, tokenizer=tokenizer, max_new_tokens=4, **settings)
    assert [row.tolist() for row in got] == [[5, 6], [10, 11, 12, 13]]


def test_a_stop_string_that_begins_in_the_prompt_does_not_count() -> None:
    tokenizer = byte_tokenizer(bos=False)
    settings = {"stop_strings": [tokenizer.decode([4, 5])], "tokenizer": tokenizer, "max_new_tokens": 3}
    assert count_up(tiny_gpt2(), [torch.tensor([2, 3, 4])], **settings)[0].tolist() == [5, 6, 7]


def test_stop_strings_in_beam_search_are_those_of_transformers() -> None:
    """Beams change places, and several follow one: what each has written goes with it."""
    tokenizer, ended = byte_tokenizer(bos=False), 0
    queries = [torch.cat((query, torch.tensor([2]))) for query in ragged_queries(3, 6, 2, 4)]
    pairs = [tokenizer.decode([first, second]) for first in range(3, 23, 2) for second in range(3, 23, 3)]
    settings = {"num_beams": 3, "eos": None}
    for seed in range(4):
        model = tiny_gpt2(seed)
        got = answer(model, queries, stop_strings=pairs, tokenizer=tokenizer, **settings)
        expected = answer(model, queries, stopping_criteria=[StopStringCriteria(tokenizer, pairs)], **settings)
        assert same(got, expected)
        ended += sum(len(row) < 8 for row in got)
    assert ended > 8


def test_a_call_inside_of_another_leaves_the_outer_one_silent() -> None:
    model = tiny_gpt2()
    with decode._masks_are_given(model):
        with decode._masks_are_given(model):
            pass
        assert "warn_if_padding_and_no_attention_mask" in vars(model)
    assert "warn_if_padding_and_no_attention_mask" not in vars(model)
