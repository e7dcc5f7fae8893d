"""transformers' continuous batching as a sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny
from tests.sampling.fake_servers import TinyWeights
from tests.sampling.test_servers import logprobs_of
from trl_step.sampling.continuous import ContinuousBatchingSampler

QUERIES = [torch.tensor([5, 6, 7]), torch.tensor([8, 9]), torch.tensor([10, 11, 12, 13])]


def network(name: str) -> Any:
    wrapper = tiny.with_value_head(name)
    for parameter in wrapper.pretrained_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return wrapper


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_k": 5, "temperature": 1.5}])
def test_logprobs_are_those_of_a_forward_pass(name: str, settings: dict[str, Any]) -> None:
    wrapper = network(name).train()
    drawn = ContinuousBatchingSampler(wrapper).sample(
        QUERIES, n=2, **{"do_sample": True, "top_k": 0, "max_new_tokens": 6, **settings}
    )
    assert drawn.group_ids == [0, 0, 1, 1, 2, 2]
    assert wrapper.training
    assert drawn.logprobs is not None
    wrapper.eval()
    for query, response, logprobs, ended in zip(
        drawn.queries, drawn.responses, drawn.logprobs, drawn.ended, strict=True
    ):
        expected = logprobs_of(wrapper.pretrained_model, query, response, settings.get("temperature", 1.0))
        torch.testing.assert_close(logprobs, expected, rtol=1e-4, atol=1e-4)  # paged attention sums in another order
        assert ended == (response[-1] == tiny.EOS)
        assert ended or len(response) == 6


def test_greedy_answers_are_those_of_generate() -> None:
    wrapper = network("llama").eval()
    drawn = ContinuousBatchingSampler(wrapper).sample(QUERIES, n=2, max_new_tokens=5)
    for i, query in enumerate(QUERIES):
        answer = wrapper.generate(query[None], do_sample=False, max_new_tokens=5)[0, len(query) :]
        assert torch.equal(drawn.responses[2 * i], answer)
        assert torch.equal(drawn.responses[2 * i + 1], answer)


def test_each_answer_has_its_limit_and_its_end() -> None:
    wrapper = network("llama")
    limits = [1, 4, 2, 2, 3, 3]
    drawn = ContinuousBatchingSampler(wrapper).sample(
        QUERIES, n=2, do_sample=True, max_new_tokens=limits, eos_token_id=-1
    )
    assert [len(response) for response in drawn.responses] == limits
    first = int(ContinuousBatchingSampler(wrapper).sample(QUERIES[:1], max_new_tokens=1).responses[0])
    ended = ContinuousBatchingSampler(wrapper, eos_token_ids=[first]).sample(QUERIES[:1], max_new_tokens=4)
    assert ended.responses[0].tolist() == [first]
    assert ended.ended == [True]


def test_the_version_is_the_trainers() -> None:
    wrapper = network("llama")
    weights = TinyWeights(wrapper.pretrained_model)
    sampler = ContinuousBatchingSampler(wrapper, weights)
    assert sampler.sample(QUERIES[:1], max_new_tokens=2).version == 0
    weights.step(0)
    assert sampler.sample(QUERIES[:1], max_new_tokens=2).version == 1


@pytest.mark.parametrize(
    "settings",
    [{"min_p": 0.1, "do_sample": True}, {"repetition_penalty": 1.2}, {"min_new_tokens": 2}, {"stop_strings": "w4"}],
)
def test_settings_that_would_be_ignored_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* does not work with generate_batch"):
        ContinuousBatchingSampler(network("llama")).sample(QUERIES, max_new_tokens=3, **settings)


def test_models_that_it_cannot_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        ContinuousBatchingSampler(tiny.with_value_head("t5")).sample(QUERIES, max_new_tokens=3)
    wrapper = network("llama")
    monkeypatch.setattr(wrapper.pretrained_model, "generate_batch", lambda *_, **__: {})
    with pytest.raises(RuntimeError, match=r"generate_batch of transformers .* on cpu gave 0 of 3 answers of LlamaFor"):
        ContinuousBatchingSampler(wrapper).sample(QUERIES, max_new_tokens=3)
