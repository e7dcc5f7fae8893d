"""A score per response token: what it means, where it lands, and that a number is the vector with it at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from tests.tiny import SEQ2SEQ, batch, trainer, weights, with_value_head
from trl_step import PPOTrainer

STARTS = {"t5": 0, "bart": 1}


def masks_of(responses: list[torch.Tensor]) -> list[torch.Tensor]:
    """Every third token is a tool's, and so is the last one of each second response that is long enough."""
    masks = [(torch.arange(len(response)) % 3 != 1).long() for response in responses]
    for mask in masks[::2]:
        mask[-1] = int(len(mask) < 3)
    return masks


def at_the_end(score: float, mask: torch.Tensor) -> torch.Tensor:
    """The vector that is `score` at the last counted token."""
    vector = torch.zeros(mask.shape)
    vector[mask.nonzero()[-1]] = score
    return vector


def build(name: str, cls: type = PPOTrainer, **options: Any) -> Any:
    if name == "lora":
        model = with_value_head("gpt2", peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True))
        return trainer(model, cls=cls, **options)
    return trainer(name, cls=cls, **options)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "norm": ("gpt2", {"use_score_norm": True}),
    "scaling and clip": ("llama", {"use_score_scaling": True, "score_clip": 0.7, "whiten_rewards": True}),
    "clip": ("gpt2", {"score_clip": 0.3}),
    "full": ("opt", {"kl_penalty": "full", "use_score_norm": True, "use_score_scaling": True}),
    "lora": ("lora", {}),
    "t5": ("t5", {"use_score_norm": True}),
    "bart": ("bart", {}),
    "as release 0.7": ("gpt2", {"exact_v07": True, "use_score_norm": True, "use_score_scaling": True}),
}


def two_steps(ours: Any, as_vectors: bool, masked: bool, with_start: bool) -> list[dict[str, Any]]:
    seen = []
    np.random.seed(0)
    for seed in range(2):
        queries, responses, scores = batch(seed=seed)
        masks = masks_of(responses) if masked else [torch.ones_like(response) for response in responses]
        given: list[Any] = [at_the_end(score, mask) for score, mask in zip(scores, masks, strict=True)]
        if with_start:
            start = ours.model.pretrained_model.config.decoder_start_token_id
            responses = [torch.cat((torch.tensor([start]), response)) for response in responses]
            masks = [torch.cat((torch.ones(1, dtype=torch.long), mask)) for mask in masks]
            given = [torch.cat((torch.zeros(1), vector)) for vector in given]
        seen.append(ours.step(queries, responses, given if as_vectors else scores, masks if masked else None))
    return seen


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.*tie_word_embeddings", "ignore:the KL divergence")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_number_is_the_vector_with_it_at_the_end(case: str, masked: bool) -> None:
    """Bit for bit: statistics, weights and running moments of two steps."""
    name, options = CASES[case]
    with_start = name in SEQ2SEQ and masked
    numbers, vectors = build(name, **options), build(name, **options)
    expected = two_steps(numbers, False, masked, with_start)
    for own, truth in zip(two_steps(vectors, True, masked, with_start), expected, strict=True):
        assert own.keys() == truth.keys()
        for key in (key for key in truth if not key.startswith("time/")):
            assert torch.equal(torch.as_tensor(own[key]), torch.as_tensor(truth[key])), key
    assert all(torch.equal(x, weights(numbers.model)[key]) for key, x in weights(vectors.model).items())
    assert vectors.running.state_dict() == numbers.running.state_dict()


class Watched(PPOTrainer):
    """Keeps what the hooks of the last step saw."""

    def compute_rewards(self, scores: torch.Tensor, *args: Any) -> Any:
        self.scores = scores
        return super().compute_rewards(scores, *args)

    def compute_advantages(self, values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor) -> Any:
        result = super().compute_advantages(values, rewards, mask)
        self.seen = {"rewards": rewards, "returns": result[2], "mask": mask}
        return result

    def counted(self, key: str) -> list[torch.Tensor]:
        return [row[mask.bool()] for row, mask in zip(self.seen[key], self.seen["mask"], strict=True)]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_every_token_gets_its_own_score(data: st.DataObject) -> None:
    """Against a loop: gamma = lam = 1 and no KL make the return of a token the sum of the scores from there on."""
    name = data.draw(st.sampled_from(["gpt2", "t5", "bart"]))
    ours = TRAINERS[name]
    queries, responses, _ = batch(3, seed=data.draw(st.integers(0, 99)))
    masks = [torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=len(r), max_size=len(r)))) for r in responses]
    for mask in masks:
        mask[data.draw(st.integers(0, len(mask) - 1))] = 1
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    vectors = [torch.randn(len(mask), generator=generator) * mask for mask in masks]
    if name in STARTS and data.draw(st.booleans()):
        inputs = [[torch.cat((x.new_tensor([first]), x)) for x in lists] for lists, first in
                  ((responses, STARTS[name]), (vectors, 0), (masks, data.draw(st.integers(0, 1))))]  # fmt: skip
    else:
        inputs = [responses, vectors, masks]
    stats = ours.step(queries, *inputs)
    for i, (vector, mask) in enumerate(zip(vectors, masks, strict=True)):
        written = vector[mask.bool()]
        torch.testing.assert_close(ours.counted("rewards")[i], written)
        expected = torch.stack([written[t:].sum() for t in range(len(written))])
        torch.testing.assert_close(ours.counted("returns")[i], expected)
    assert not ours.seen["rewards"][ours.seen["mask"] == 0].any()
    totals = torch.stack([vector.sum() for vector in vectors])
    assert stats["ppo/mean_scores"] == pytest.approx(float(totals.mean()), rel=1e-5, abs=1e-6)
    assert stats["ppo/std_scores"] == pytest.approx(float(totals.std()), rel=1e-5, abs=1e-6)


WITHOUT_KL: dict[str, Any] = {"gamma": 1.0, "lam": 1.0, "init_kl_coef": 0.0, "ppo_epochs": 1, "learning_rate": 0.0}
TRAINERS = {name: trainer(name, cls=Watched, **WITHOUT_KL) for name in ("gpt2", "t5", "bart")}


def test_a_hook_gets_one_number_per_sample_unless_a_vector_was_given() -> None:
    ours = trainer("gpt2", cls=Watched)
    queries, responses, scores = batch()
    ours.step(queries, responses, scores)
    assert ours.scores.shape == (8,)
    masks = masks_of(responses)
    mixed: list[Any] = [*scores[:7], torch.linspace(0, 1, len(responses[7])) * masks[7]]
    ours.step(queries, responses, mixed, masks)
    assert ours.scores.shape == ours.seen["mask"].shape
    for i, (row, mask) in enumerate(zip(ours.scores, ours.seen["mask"], strict=True)):
        number = at_the_end(scores[i], masks[i]) if i < 7 else mixed[7]
        torch.testing.assert_close(row[mask.bool()], number[masks[i].bool()])


KINDS: dict[str, Any] = {
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(x.tolist()),
    "array": lambda x: x.numpy(),
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half().float().half(),
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "strided": lambda x: torch.stack((x, x), dim=1)[:, 0],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_every_kind_are_taken_and_left_alone(kind: str) -> None:
    queries, responses, _ = batch()
    vectors = [torch.arange(len(response)) / 4 for response in responses]
    given = [KINDS[kind](vector) for vector in vectors]
    expected = trainer("gpt2").step(queries, responses, vectors)
    assert trainer("gpt2").step(queries, responses, given)["ppo/loss/total"] == expected["ppo/loss/total"]
    for vector, kept in zip(given, vectors, strict=True):
        assert torch.equal(torch.as_tensor(vector).detach().float(), kept)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_score_on_the_decoders_start_token_is_refused(name: str) -> None:
    queries, responses, _ = batch()
    responses = [torch.cat((torch.tensor([STARTS[name]]), response)) for response in responses]
    vectors: list[Any] = [torch.zeros(len(response)) for response in responses]
    vectors[3][0] = 2.0
    with pytest.raises(ValueError, match=r"scores\[3\]\[0\] is 2.0, .* decoder's start token"):
        trainer(name).step(queries, responses, vectors)


def test_release_07_has_no_place_for_token_scores_in_a_decoder() -> None:
    queries, responses, _ = batch()
    responses = [torch.cat((torch.tensor([0]), response, response, response)) for response in responses]
    with pytest.raises(ValueError, match=r"scores\[0\]: with exact_v07 an encoder-decoder"):
        trainer("t5", exact_v07=True).step(queries, responses, [torch.zeros(len(r)) for r in responses])


def test_scores_find_their_tokens_behind_padding_on_the_left() -> None:
    class Own(Watched):
        def prepare_model_inputs(self, queries: Any, responses: Any) -> Any:
            inputs = super().prepare_model_inputs(queries, responses)
            return {key: _left(value, inputs) for key, value in inputs.items()}

    ours = trainer("gpt2", cls=Own, **WITHOUT_KL)
    queries, responses, _ = batch()
    vectors = [torch.arange(1.0, 1 + len(response)) for response in responses]
    ours.step(queries, responses, vectors)
    for counted, vector in zip(ours.counted("rewards"), vectors, strict=True):
        torch.testing.assert_close(counted, vector)


def _left(value: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """`value` [B, S] with the padding of `inputs` in front."""
    order = torch.argsort(inputs["attention_mask"], dim=1, stable=True)
    return value.gather(1, order)


def test_log_stats_logs_the_sum() -> None:
    class Tracker:
        name = "list"

        def __init__(self) -> None:
            self.logged: dict[str, Any] = {}

        def log(self, values: dict[str, Any], **kwargs: Any) -> None:
            self.logged = values

    ours, tracker = trainer("gpt2"), Tracker()
    ours.accelerator.trackers = [tracker]
    ours.log_stats({}, {}, [1.0, torch.tensor([0.5, 0.0, -1.0]), [1.0, 2.0]], columns_to_log=())  # type: ignore[list-item]
    assert tracker.logged["env/reward_mean"] == pytest.approx((1.0 - 0.5 + 3.0) / 3)
