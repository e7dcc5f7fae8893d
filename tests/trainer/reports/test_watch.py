"""What the trainer says of answers that are no samples, and of samples that were padded by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import GenerationConfig

from tests import tiny
from trl_step.sampling import LocalSampler
from trl_step.trainer.reports.watch import padded_by_hand

SAMPLED = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": 4, "return_prompt": False}


def heard(act) -> str:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        act()
    return "\n".join(str(one.message) for one in found)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "do_sample=False: "),
        ({"num_beams": 3}, "do_sample=False, num_beams=3: "),
        ({"generation_config": GenerationConfig(num_beams=2)}, "do_sample=False, num_beams=2: "),
    ],
)
def test_greedy_and_beam_answers_in_step_are_warned_of_once(settings, named):
    trainer = tiny.trainer()
    queries, _, scores = tiny.batch()
    greedy = {"max_new_tokens": 4, "return_prompt": False, "eos_token_id": -1, **settings}
    said = heard(lambda: trainer.generate(queries, **greedy))
    assert "likeliest" not in said  # an evaluation may be greedy
    responses = trainer.generate(queries, **greedy)
    said = heard(lambda: trainer.step(queries, responses, scores))
    assert f"step was given answers of generate with {named}they are the likeliest ones" in said
    responses = trainer.generate(queries, **greedy)
    assert "likeliest" not in heard(lambda: trainer.step(queries, responses, scores))


def test_beam_sampling_is_another_distribution():
    trainer = tiny.trainer()
    said = heard(lambda: trainer.generate(tiny.batch()[0], **{**SAMPLED, "num_beams": 2}))
    assert "responses are sampled with num_beams=2" in said


@pytest.mark.parametrize("order", [("sampled", "greedy"), ("greedy", "sampled")])
def test_an_evaluation_with_greedy_answers_beside_samples_is_fine(order):
    trainer = tiny.trainer()
    queries, responses, scores = tiny.batch()

    def use() -> None:
        for kind in order:
            trainer.generate(queries, **(SAMPLED if kind == "sampled" else {"max_new_tokens": 4}))
        trainer.step(queries, responses, scores)

    assert "likeliest" not in heard(use)


def test_the_batch_of_the_step_before_is_said_once():
    """A loop that forgets to sample anew trains on answers of a policy that is gone."""
    trainer, said = tiny.trainer(), "step was given the queries and responses of the step before"
    one, other = tiny.batch(), tiny.batch(seed=2)
    assert said not in heard(lambda: trainer.step(*one))
    assert said not in heard(lambda: trainer.step(*other))
    assert said not in heard(lambda: trainer.step(*one))
    assert said in heard(lambda: trainer.step(*one))
    assert said not in heard(lambda: trainer.step(*one))


def test_the_same_batch_with_its_log_probs_is_fine():
    trainer, (queries, responses, scores) = tiny.trainer(), tiny.batch()
    old = [torch.full((len(response),), -4.0) for response in responses]
    trainer.step(queries, responses, scores)
    said = heard(lambda: trainer.step(queries, responses, scores, old_logprobs=old))
    assert "of the step before" not in said


@pytest.mark.parametrize("side", ["left", "right"])
def test_queries_padded_by_hand_are_found(side):
    trainer = tiny.trainer()
    queries, responses, scores = tiny.batch()
    padded = tiny.tokenizer(side).pad({"input_ids": queries}, padding=True, return_tensors="pt")["input_ids"]
    said = heard(lambda: trainer.step(list(padded), responses, scores))
    assert f"queries {'begin' if side == 'left' else 'end'} with the padding token" in said
    assert [finding.diagnosis.name for finding in trainer.checkup.findings] == ["padding"]


def test_responses_padded_after_their_end_are_found():
    trainer = tiny.trainer()
    queries, responses, scores = tiny.batch()
    end = torch.tensor([tiny.EOS, tiny.PAD, tiny.PAD])
    padded = [torch.cat((response, end)) for response in responses]
    assert "responses end with the padding token" in heard(lambda: trainer.step(queries, padded, scores))


def test_samples_without_padding_are_left_alone():
    trainer = tiny.trainer()
    assert "padding token" not in heard(lambda: trainer.step(*tiny.batch()))
    assert not trainer.checkup.findings


def ids(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in rows]


def test_one_special_token_at_an_edge_is_no_padding_but_two_are():
    """GPT-2's only special token is padding, start and end."""
    answers = ids([8, 0], [0], [8, 9])
    assert padded_by_hand(ids([0, 5], [0], [0, 6, 7]), answers, 0, [0], is_special=True) == ()
    assert padded_by_hand(ids([0, 0, 5], [0, 5, 6], [0, 6, 7]), answers, 0, [0], is_special=True) == ("queries begin",)
    assert padded_by_hand(ids([5, 0, 0], [5, 6, 0], [6, 7, 0]), answers, 0, [0], is_special=True) == ("queries end",)
    assert padded_by_hand(ids([5], [6]), ids([8, 0, 0], [8, 9]), 0, [0], is_special=True) == ("responses end",)


def test_a_few_queries_that_begin_with_the_padding_token_are_left_alone():
    assert padded_by_hand(ids([0, 5], [5], [6, 7]), ids([8], [8], [8]), 0, [1], is_special=False) == ()


class Stale(LocalSampler):
    """Says that its answers are one update old."""

    def draw(self, queries, n, settings):
        drawn = super().draw(queries, n, settings)
        return drawn._replace(version=drawn.version - 1)


@pytest.mark.parametrize("method", ["sample", "generate"])
def test_answers_of_older_weights_are_warned_of(method):
    trainer = tiny.trainer()
    queries, responses, scores = tiny.batch()
    trainer.sampler = Stale(trainer.model, trainer.tokenizer)
    settings = {"do_sample": True, "top_k": 0, "max_new_tokens": 2}
    getattr(trainer, method)(queries, **settings)
    said = heard(lambda: trainer.step(queries, responses, scores))
    assert "with weights that are 1 update(s) older than the policy's" in said
    assert [finding.diagnosis.name for finding in trainer.checkup.findings][:1] == ["old weights"]
