"""Row A14: every token that an encoder-decoder model generates is trained, the first one too."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import batch, trainer, weights


def with_start(name: str, responses: list[torch.Tensor]) -> list[torch.Tensor]:
    start = {"t5": 0, "bart": 1}[name]
    return [torch.cat((torch.tensor([start]), response)) for response in responses]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_every_generated_token_counts(name: str) -> None:
    ours = trainer(name)
    queries, responses, scores = batch()
    stats = ours.step(queries, with_start(name, responses), scores)
    for i, response in enumerate(responses):
        assert int((stats["objective/logprobs"][i] != 0).sum()) == len(response)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_response_of_one_token_is_trained(name: str) -> None:
    ours = trainer(name)
    queries, _, _ = batch()
    token = torch.tensor([7])
    responses = with_start(name, [token] * 4 + [torch.tensor([9])] * 4)
    before = weights(ours.model)
    stats = ours.step(queries, responses, [1.0] * 4 + [-1.0] * 4)
    assert any(not torch.equal(before[key], value) for key, value in weights(ours.model).items())
    after = ours.step(queries, responses, [1.0] * 4 + [-1.0] * 4)
    moved = after["objective/logprobs"] - stats["objective/logprobs"]
    assert bool((moved[:4, 0] > 0).all()), "what was rewarded became more likely"
    assert bool((moved[4:, 0] < 0).all())


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_response_without_the_start_token_is_the_same(name: str) -> None:
    """A serving engine leaves it away; it is put back, and a mask with it."""
    queries, responses, scores = batch()
    masks = [(torch.arange(len(r)) != 1).long() for r in responses]
    one = torch.tensor([1])
    plain = trainer(name).step(queries, responses, scores, masks)
    full = trainer(name).step(queries, with_start(name, responses), scores, [torch.cat((one, mask)) for mask in masks])
    assert torch.equal(plain["objective/logprobs"], full["objective/logprobs"])
    assert plain["ppo/loss/total"] == full["ppo/loss/total"]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_what_generate_gives_is_what_step_takes(name: str) -> None:
    ours = trainer(name)
    queries, _, scores = batch()
    responses = ours.generate(queries, do_sample=True, top_k=0, max_new_tokens=5)
    stats = ours.step(queries, responses, scores)
    counted = (stats["objective/logprobs"] != 0).sum(dim=1).tolist()
    assert counted == [len(response) - 1 for response in responses]


@pytest.mark.parametrize("exact_v07", [False, True])
def test_the_old_numbers_are_there_for_a_port(exact_v07: bool) -> None:
    """Release 0.7.11 leaves the first generated token out."""
    queries, responses, _ = batch()
    ours, responses = trainer("t5", exact_v07=exact_v07), with_start("t5", responses)
    inputs = ours.prepare_model_inputs(queries, responses)
    masks = ours.batched_forward_pass(ours.model, queries, responses, inputs)[3]
    left_out = 2 if exact_v07 else 1
    assert masks.sum(dim=1).tolist() == [max(len(response) - left_out, 0) for response in responses]
