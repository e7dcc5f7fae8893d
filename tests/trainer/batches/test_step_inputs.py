"""What `step` takes, and what it refuses: by name, with the index of the sample, before anything happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch

from tests import tiny
from tests.tiny import VOCABULARY, batch, trainer
from tests.trainer.runs.state_tools import changed, everything

Change = Callable[[dict[str, Any]], None]


def put(name: str, index: int, value: Any) -> Change:
    return lambda inputs: inputs[name].__setitem__(index, value)


def replace(name: str, value: Any) -> Change:
    return lambda inputs: inputs.__setitem__(name, value)


def with_masks(index: int, change: Callable[[torch.Tensor], Any]) -> Change:
    def apply(inputs: dict[str, Any]) -> None:
        masks = [torch.ones_like(response) for response in inputs["responses"]]
        masks[index] = change(masks[index])
        inputs["response_masks"] = masks

    return apply


def of_responses(name: str, index: int, change: Callable[[torch.Tensor], Any]) -> Change:
    def apply(inputs: dict[str, Any]) -> None:
        tensors = [-torch.ones(len(response)) for response in inputs["responses"]]
        tensors[index] = change(tensors[index])
        inputs[name] = tensors

    return apply


def token_scores(index: int, change: Callable[[torch.Tensor], Any]) -> Change:
    def apply(inputs: dict[str, Any]) -> None:
        inputs["scores"][index] = change(torch.zeros(len(inputs["responses"][index])))

    return apply


def masked_score(inputs: dict[str, Any]) -> None:
    """The second token of response 4 has a score, but was not written by the policy."""
    with_masks(4, lambda mask: mask.index_fill(0, ids(1), 0))(inputs)
    token_scores(4, lambda zeros: zeros.index_fill(0, ids(1), 0.5))(inputs)


ids = torch.tensor
BAD: dict[str, tuple[Change, str]] = {
    "fewer responses": (lambda i: i["responses"].pop(), "lengths differ: queries 8, responses 7, scores 8; sample 7"),
    "more scores": (lambda i: i["scores"].append(0.0), "lengths differ: .* scores 9; sample 8"),
    "fewer masks": (replace("response_masks", [torch.ones(1)]), "response_masks 1; sample 1"),
    "no samples": (lambda i: i.update(queries=[], responses=[], scores=[]), "empty.*sample 0"),
    "queries as one tensor": (replace("queries", torch.zeros(8, 3).long()), "queries must be a list .* got Tensor"),
    "responses as a string": (replace("responses", "hello"), "responses must be a list .* got str"),
    "scores as a number": (replace("scores", 1.0), "scores must be a list .* got float"),
    "scores as a column": (replace("scores", torch.zeros(8, 1)), r"of shape \(8, 1\); use \.squeeze\(-1\)"),
    "masks as a tensor": (replace("response_masks", torch.ones(8, 3)), "response_masks must be a list"),
    "a query as a list": (put("queries", 2, [4, 5]), r"queries\[2\] must be a tensor .* got list"),
    "a response as an array": (put("responses", 3, np.array([4])), r"responses\[3\] must be a tensor .* got ndarray"),
    "a response that is None": (put("responses", 3, None), r"responses\[3\] .* got NoneType"),
    "a query with a batch dimension": (put("queries", 1, ids([[4, 5]])), r"queries\[1\] .* shape \(1, 2\)"),
    "a response that is one id": (put("responses", 1, ids(4)), r"responses\[1\] .* shape \(\)"),
    "a float response": (put("responses", 1, ids([4.0])), r"responses\[1\] must hold integer .* torch.float32"),
    "a bool query": (put("queries", 1, ids([True])), r"queries\[1\] must hold integer .* torch.bool"),
    "an empty query": (put("queries", 5, ids([]).long()), r"queries\[5\] is empty"),
    "an empty response": (put("responses", 5, ids([]).long()), r"responses\[5\] is empty"),
    "an id beyond the vocabulary": (put("responses", 6, ids([4, VOCABULARY])), r"responses\[6\] .* id 60, .* 0\.\.59"),
    "a negative id": (put("queries", 6, ids([4, -100])), r"queries\[6\] contains token id -100"),
    "a query on no device": (put("queries", 4, ids([4], device="meta")), r"queries\[4\] .*meta"),
    "a sparse response": (put("responses", 4, ids([4, 5]).to_sparse()), r"responses\[4\] .*sparse"),
    "a sample that is too long": (put("responses", 2, torch.full((62,), 7)), r"queries\[2\] and responses\[2\] .* 64"),
    "a score that is NaN": (put("scores", 7, float("nan")), r"scores\[7\] is nan"),
    "an infinite score": (put("scores", 7, torch.tensor([float("-inf")])), r"scores\[7\] is -inf"),
    "a score that float32 cannot hold": (put("scores", 7, 1e39), r"scores\[7\] is 1e\+39"),
    "a score that float16 lost": (put("scores", 7, torch.tensor(1e5).half()), r"scores\[7\] is inf"),
    "too many token scores": (put("scores", 0, torch.zeros(12)), r"scores\[0\] must be one number, .*shape \(12,\)"),
    "no score": (put("scores", 0, torch.zeros(0)), r"scores\[0\] must be one number, .* shape \(0,\)"),
    "a score in words": (put("scores", 4, "good"), r"scores\[4\] must be a number .* 'good'"),
    "a score in digits": (put("scores", 4, "1.0"), r"scores\[4\] must be a number .* '1.0'"),
    "a score that is None": (put("scores", 4, None), r"scores\[4\] must be a number .* None"),
    "a complex score": (put("scores", 4, 1j), r"scores\[4\] must be a number"),
    "a complex tensor": (put("scores", 4, torch.tensor(1j)), r"scores\[4\] must be one real number"),
    "a list with a word": (put("scores", 4, [1.0, "2"]), r"scores\[4\] must be a number, or a vector"),
    "an array of objects": (put("scores", 4, np.array([None, 1])), r"scores\[4\] must be a number, or a vector"),
    "a matrix of scores": (put("scores", 4, torch.zeros(2, 3)), r"scores\[4\] .* got shape \(2, 3\)"),
    "a token score that is NaN": (token_scores(4, lambda x: x.index_fill(0, ids(2), np.nan)), r"\[4\]\[2\] is nan"),
    "an infinite token score": (token_scores(4, lambda x: x.double() + 1e39), r"scores\[4\]\[0\] is inf"),
    "token scores of a huge sum": (token_scores(4, lambda x: x + 3e38), r"scores\[4\] add up to .*scale them"),
    "complex token scores": (token_scores(4, lambda x: x * 1j), r"scores\[4\] must hold real numbers, .*complex64"),
    "sparse token scores": (token_scores(4, lambda x: x.to_sparse()), r"scores\[4\] must hold .*sparse"),
    "token scores on no device": (token_scores(4, lambda x: x.to("meta")), r"scores\[4\] must hold .* meta"),
    "a token score on a masked token": (masked_score, r"s\[4\]\[1\] is 0.5, but response_masks\[4\] .* last token"),
    "a score on no device": (put("scores", 4, torch.zeros((), device="meta")), r"scores\[4\] .* meta"),
    "a mask that is too short": (with_masks(3, lambda m: m[:-1]), r"response_masks\[3\] has shape .* responses\[3\]"),
    "a mask that is too long": (with_masks(3, lambda m: torch.cat((m, m))), r"response_masks\[3\] has shape"),
    "a mask with a batch dimension": (with_masks(3, lambda m: m[None]), r"response_masks\[3\] has shape"),
    "a mask that is a list": (with_masks(3, lambda m: m.tolist()), r"response_masks\[3\] must be a tensor, got list"),
    "a mask with a 2": (with_masks(3, lambda m: m * 2), r"response_masks\[3\] must hold only 0 and 1"),
    "a mask with NaN": (with_masks(3, lambda m: m * float("nan")), r"response_masks\[3\] must hold only 0 and 1"),
    "a mask of nothing": (with_masks(3, lambda m: m * 0), r"response_masks\[3\] masks every token"),
    "a complex mask": (with_masks(3, lambda m: m * 1j), r"response_masks\[3\] must be a dense tensor .*complex64"),
    "a sparse mask": (with_masks(3, lambda m: m.to_sparse()), r"response_masks\[3\] must be a dense"),
    "a mask on no device": (with_masks(3, lambda m: m.to("meta")), r"response_masks\[3\] .* meta"),
    "old log-probs on no device": (of_responses("old_logprobs", 2, lambda x: x.to("meta")), r"s\[2\] .*meta"),
    "sparse values": (of_responses("values", 2, lambda x: x.to_sparse()), r"values\[2\] must be a dense"),
    "old log-probs of another length": (of_responses("old_logprobs", 2, lambda x: x[1:]), r"s\[2\] has shape"),
    "old log-probs as numbers": (of_responses("old_logprobs", 2, lambda x: x.tolist()), r"old_logprobs\[2\] must be"),
    "integer values": (of_responses("values", 2, lambda x: x.long()), r"values\[2\] must be a floating"),
    "fewer values": (lambda i: i.update(values=[torch.zeros(1)]), "values 1; sample 1"),
    "values that are not finite": (of_responses("values", 2, lambda x: x / 0), "sample 2: the values"),
    "old log-probs that are not finite": (of_responses("old_logprobs", 2, lambda x: x / 0), "sample 2: the logprobs"),
    "reference log-probs of NaN": (of_responses("ref_logprobs", 2, lambda x: x * float("nan")), "sample 2: the r"),
}  # fmt: skip


@pytest.fixture(scope="module")
def ours() -> Any:
    """One trainer for all: what is refused must leave it alone."""
    built = trainer("gpt2")
    built.step(*batch())
    return built


def forwards(ours: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows with every forward pass of the policy."""
    seen: list[Any] = []
    plain = ours.model.forward
    monkeypatch.setattr(ours.model, "forward", lambda *args, **kwargs: (seen.append(1), plain(*args, **kwargs))[1])
    return seen


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name_before_anything_happens(
    name: str, ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = BAD[name]
    inputs: dict[str, Any] = dict(zip(("queries", "responses", "scores"), batch(), strict=True))
    change(inputs)
    before, passes = everything(ours), forwards(ours, monkeypatch)
    with pytest.raises((ValueError, TypeError), match=message):
        ours.step(**inputs)
    assert changed(before, everything(ours)) == []
    if not message.startswith("sample 2: the"):  # what is given is looked at together with what is computed
        assert passes == []


def test_the_message_says_what_to_do() -> None:
    ours = trainer("gpt2")
    queries, responses, scores = batch()
    queries[1] = queries[1][None]
    with pytest.raises(ValueError, match=re.escape("use .squeeze(0)")):
        ours.step(queries, responses, scores)


SCORES: dict[str, Callable[[float], Any]] = {
    "float": float,
    "int": lambda x: round(x),
    "bool": lambda x: x > 0,
    "0-d tensor": torch.tensor,
    "1-element tensor": lambda x: torch.tensor([x]),
    "[1, 1] tensor": lambda x: torch.tensor([[x]]),
    "float64 tensor": lambda x: torch.tensor(x, dtype=torch.float64),
    "float16 tensor": lambda x: torch.tensor(x, dtype=torch.float16),
    "bfloat16 tensor": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "int tensor": lambda x: torch.tensor(round(x)),
    "tensor with a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "NumPy number": np.float64,
    "NumPy float32": np.float32,
    "0-d array": np.array,
    "decimal": Decimal,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", SCORES)
def test_scores_of_every_kind_are_taken(kind: str) -> None:
    queries, responses, numbers = batch()
    scores = [SCORES[kind](number) for number in numbers]
    stats = trainer("gpt2").step(queries, responses, scores)
    expected = sum(float(x.detach() if isinstance(x, torch.Tensor) else x) for x in scores) / len(scores)
    assert stats["ppo/mean_scores"] == pytest.approx(expected, rel=1e-5, abs=1e-6)


class Array:
    """As JAX and others have it."""

    def __init__(self, numbers: list[float]) -> None:
        self.numbers = np.array(numbers)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.numbers.astype(dtype or np.float64)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[float]:
        return iter(self.numbers)


def test_what_is_given_beside_scores_may_be_one_vector() -> None:
    queries, responses, scores = batch()
    settings = {"advantage_estimator": "grpo"}
    groups = [i // 2 for i in range(len(scores))]
    as_list = trainer("gpt2", **settings).step(queries, responses, scores, group_ids=groups)
    for vector in (pandas.Series(groups), Array(groups)):
        stats = trainer("gpt2", **settings).step(queries, responses, scores, group_ids=vector)
        assert stats["ppo/loss/total"] == as_list["ppo/loss/total"]


def test_scores_may_be_one_vector() -> None:
    queries, responses, scores = batch()
    as_list = trainer("gpt2").step(queries, responses, scores)
    column = pandas.Series(scores, index=range(5, 5 + len(scores)))
    for vector in (torch.tensor(scores), np.array(scores), np.array(scores, dtype=np.float32), column, Array(scores)):
        ours = trainer("gpt2")
        stats = ours.step(queries, responses, vector)
        assert stats["ppo/loss/total"] == as_list["ppo/loss/total"]
        ours.log_stats(stats, {"query": ["q"] * len(scores), "response": ["r"] * len(scores)}, vector)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_ids_of_every_integer_type_are_taken(dtype: torch.dtype) -> None:
    queries, responses, scores = batch()
    narrow = [[x.to(dtype) for x in lists] for lists in (queries, responses)]
    expected = trainer("gpt2").step(queries, responses, scores)
    assert trainer("gpt2").step(*narrow, scores)["ppo/loss/total"] == expected["ppo/loss/total"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.uint8])
def test_masks_of_every_type_are_taken(dtype: torch.dtype) -> None:
    queries, responses, scores = batch()
    masks = [(torch.arange(len(response)) % 2 == 0).to(dtype) for response in responses]
    stats = trainer("gpt2").step(queries, responses, scores, masks)
    counted = sum(int(mask.sum()) for mask in masks)
    assert int((stats["objective/logprobs"] != 0).sum()) == counted


def test_tuples_are_taken_and_nothing_of_the_callers_is_changed() -> None:
    queries, responses, scores = batch()
    masks = [torch.ones_like(response) for response in responses]
    copies = [[x.clone() for x in lists] for lists in (queries, responses, masks)]
    trainer("gpt2").step(tuple(queries), tuple(responses), tuple(scores), tuple(masks))
    for lists, copied in zip((queries, responses, masks), copies, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(lists, copied, strict=True))


@pytest.mark.parametrize("count", [1, 3, 8, 19])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_any_number_of_samples_is_taken(count: int, name: str) -> None:
    ours = trainer(name, mini_batch_size=4)
    before = everything(ours)
    stats = ours.step(*batch(count))
    assert len(stats["objective/kl_dist"]) == count
    assert "weights" in changed(before, everything(ours))


def test_bad_input_of_an_encoder_decoder_is_named() -> None:
    ours = trainer("bart")
    queries, responses, scores = batch()
    start = ours.model.config.decoder_start_token_id
    for index, (response, message) in enumerate(
        [(ids([start]), "decoder start token and nothing else"), (torch.full((64,), 7), r"responses\[1\]: 65 tokens")]
    ):
        bad = list(responses)
        bad[index] = response
        with pytest.raises(ValueError, match=rf"responses\[{index}\].*{message.split(': ')[-1]}"):
            ours.step(queries, bad, scores)
    queries[2] = torch.full((65,), 7)
    with pytest.raises(ValueError, match=r"queries\[2\]: 65 tokens do not fit into 64 positions"):
        ours.step(queries, responses, scores)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_models_without_learned_positions_take_any_length(name: str) -> None:
    queries, responses, scores = batch()
    responses[0] = torch.full((90,), 7)
    assert trainer(name).step(queries, responses, scores)["tokens/responses_len_mean"] > 10


def test_the_old_numbers_of_a_decoder_need_a_token_behind_the_first_one() -> None:
    ours = trainer("t5", exact_v07=True)
    queries, responses, scores = batch()
    responses = [torch.cat((torch.zeros(1).long(), response, response)) for response in responses]
    ours.step(queries, responses, scores)
    before = everything(ours)
    responses[3] = responses[3][:2]
    with pytest.raises(ValueError, match=r"responses\[3\]: with exact_v07"):
        ours.step(queries, responses, scores)
    assert changed(before, everything(ours)) == []


def test_a_fixed_length_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="pad_max_len=65 is more than the model's 64 positions"):
        trainer("gpt2", pad_for_acceleration=True, pad_max_len=65)
    ours = trainer("gpt2", pad_for_acceleration=True, pad_max_len=20)
    queries, responses, scores = batch()
    responses[4] = torch.full((20,), 7)
    with pytest.raises(ValueError, match=r"queries\[4\] and responses\[4\] together: .* do not fit into 20"):
        ours.step(queries, responses, scores)


def test_a_data_set_smaller_than_a_batch_is_an_error():
    """It gave a loader of no batches, and a run of no steps."""
    data = datasets.Dataset.from_dict({"input_ids": [[5, 6]] * 7})
    with pytest.raises(ValueError, match=r"dataset has 7 rows, but 8 make the first batch .batch_size=8.*lower batch_"):
        tiny.PPOTrainer(tiny.config(), tiny.with_value_head("gpt2"), None, tiny.tokenizer(), data)
    whole = datasets.Dataset.from_dict({"input_ids": [[5, 6]] * 8})
    trainer = tiny.PPOTrainer(tiny.config(), tiny.with_value_head("gpt2"), None, tiny.tokenizer(), whole)
    assert len(trainer.dataloader) == 1
