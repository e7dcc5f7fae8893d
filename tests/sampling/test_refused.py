"""What `generate` refuses: more tokens than positions, and answers that are more than tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from tests import tiny
from tests.sampling.generation_tools import answer, ragged_queries, tiny_bart, tiny_gpt2


def test_answers_beyond_the_positions_are_refused_before_sampling():
    """One token over was returned, and then refused by `step`; two were an IndexError."""
    model = tiny_gpt2()
    assert len(answer(model, ragged_queries(60), max_new_tokens=4, eos=None, eos_token_id=-1)[0]) == 4
    with pytest.raises(
        ValueError, match=r"query 1 .60. and its new tokens .5.: 65 tokens do not fit into 64 positions"
    ):
        answer(model, ragged_queries(3, 60), max_new_tokens=5)
    with pytest.raises(
        ValueError, match=r"query 0 .64. and its new tokens .1.: 65 tokens do not fit into 64 positions"
    ):
        answer(model, ragged_queries(64), max_new_tokens=None)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_bart])
@pytest.mark.parametrize("bad", [-1, 10_000])
def test_token_ids_without_an_embedding_are_refused_before_sampling(build, bad):
    """They were an IndexError, and on a GPU an assert that ends the process's use of it."""
    queries = ragged_queries(3, 5)
    queries[1][2] = bad
    with pytest.raises(ValueError, match=rf"query 1 contains token id {bad}, outside the model's vocabulary 0\.\."):
        answer(build(), queries)


def test_encoder_and_decoder_have_their_own_positions():
    model = tiny_bart()
    assert answer(model, ragged_queries(64), max_new_tokens=3)
    with pytest.raises(ValueError, match="query 0: 65 tokens do not fit into 64 positions"):
        answer(model, ragged_queries(65), max_new_tokens=3)
    with pytest.raises(ValueError, match="the answer to query 0: 65 tokens do not fit into 64 positions"):
        answer(model, ragged_queries(3), max_new_tokens=64)


@pytest.mark.parametrize("name", ["return_dict_in_generate", "output_scores", "output_logits", "output_attentions"])
def test_more_than_tokens_is_refused(name):
    trainer = tiny.trainer()
    with pytest.raises(ValueError, match=f"{name}=True is not available.*call model.generate"):
        trainer.generate([torch.tensor([5, 6])], max_new_tokens=2, **{name: True})
    config = GenerationConfig(max_new_tokens=2, **{name: True})
    with pytest.raises(ValueError, match=f"{name}=True is not available"):
        trainer.generate([torch.tensor([5, 6])], generation_config=config)
    assert len(trainer.generate([torch.tensor([5, 6])], max_new_tokens=2, **{name: False})) == 1
