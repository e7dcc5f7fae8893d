"""`trainer.sample`, several answers by `generate`, and samplers that follow the trainer's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny
from trl_step.sampling.sampler import Sampler, Samples, repeated

QUERIES = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]


@pytest.mark.parametrize("name", ["n", "num_return_sequences"])
def test_several_answers_stand_next_to_each_other(name: str) -> None:
    trainer = tiny.trainer()
    got = trainer.generate(QUERIES, max_new_tokens=3, do_sample=True, return_prompt=True, **{name: 3})
    assert [row[:2].tolist() for row in got] == [[5, 6]] * 3 + [[8, 9]] * 3
    answers = trainer.generate(QUERIES, max_new_tokens=3, do_sample=True, return_prompt=False, **{name: 3})
    assert len(answers) == 6
    assert all(1 <= len(row) <= 3 for row in answers)


def test_several_answers_to_a_single_query_are_one_padded_tensor() -> None:
    trainer = tiny.trainer()
    torch.manual_seed(0)
    got = trainer.generate(QUERIES[0], n=4, max_new_tokens=20, do_sample=True)
    torch.manual_seed(0)
    rows = trainer.generate([QUERIES[0]], n=4, max_new_tokens=20, do_sample=True)
    assert got.shape == (4, max(map(len, rows)))
    for padded, row in zip(got, rows, strict=True):
        assert torch.equal(padded[: len(row)], row)
        assert bool((padded[len(row) :] == tiny.PAD).all())


def test_a_length_of_its_own_for_each_answer() -> None:
    trainer, lengths = tiny.trainer(), iter([1, 2, 3, 4])
    got = trainer.generate(
        QUERIES, lambda: next(lengths), n=2, return_prompt=False, do_sample=False, suppress_tokens=[tiny.EOS]
    )
    assert [len(row) for row in got] == [1, 2, 3, 4]


def test_samples_say_which_ended_and_what_drew_them() -> None:
    trainer = tiny.trainer()
    samples = trainer.sample(QUERIES, 20, max_new_tokens=12, do_sample=True, top_k=0)
    for response, ended in zip(samples.responses, samples.ended, strict=True):
        assert ended == (int(response[-1]) == tiny.EOS)
    assert len(set(samples.ended)) == 2
    assert samples.version == 0
    trainer.step(samples.queries[:8], samples.responses[:8], [1.0] * 8, group_ids=samples.group_ids[:8])
    assert trainer.sample(QUERIES, max_new_tokens=2).version == 1


class Elsewhere(Sampler):
    """A sampler with weights of its own: it keeps what it is sent, and may fail."""

    def __init__(self, weights: Any = None) -> None:
        super().__init__(weights)
        self.updates: list[int] = []
        self.state: dict[str, torch.Tensor] = {}
        self.fails = 0

    def update(self, weights: Any, version: int) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("the server is gone")
        self.updates.append(version)
        self.state = {name: weight.clone() for name, weight in weights.tensors()}

    def draw(self, queries: Any, n: int, settings: dict[str, Any]) -> Samples:
        asked, groups = repeated(queries, n)
        answers = [torch.tensor([7, 8, tiny.EOS]) for _ in asked]
        return Samples(
            asked, answers, [torch.full((3,), -1.0) for _ in asked], [True] * len(asked), self.version, groups
        )


def test_a_sampler_takes_over_weights_when_they_have_changed() -> None:
    trainer, sampler = tiny.trainer(), Elsewhere()
    trainer.sampler = sampler
    for _ in range(2):
        samples = trainer.sample(QUERIES, 4)
    assert sampler.updates == [0]
    trainer.step(samples.queries, samples.responses, [1.0, -1.0] * 4, sampling_logprobs=samples.logprobs)
    assert trainer.sample(QUERIES).version == 1
    assert sampler.updates == [0, 1]
    plain = trainer.model.pretrained_model.state_dict()
    assert sampler.state.keys() == plain.keys() - {"lm_head.weight"}, "shared with the embedding: comes once"
    assert all(torch.equal(sampler.state[name], plain[name]) for name in sampler.state)


def test_an_update_that_failed_is_tried_again() -> None:
    trainer, sampler = tiny.trainer(), Elsewhere()
    trainer.sampler = sampler
    sampler.fails = 1
    with pytest.raises(RuntimeError, match="the server is gone"):
        trainer.sample(QUERIES)
    assert len(trainer.sample(QUERIES).responses) == 2


def test_generate_asks_the_assigned_sampler() -> None:
    trainer = tiny.trainer()
    trainer.sampler = Elsewhere()
    assert [row.tolist() for row in trainer.generate(QUERIES)] == [[5, 6, 7, 7, 8, 1], [8, 9, 7, 8, 1]]
    own, reference = trainer.generate(QUERIES, return_prompt=False, generate_ref_response=True, max_new_tokens=2)
    assert [len(row) for row in own] == [3, 3]
    assert all(len(row) <= 2 for row in reference), "the reference samples here"


def test_loaded_weights_are_taken_over_although_their_number_is_the_same(tmp_path) -> None:
    trainer, sampler = tiny.trainer(), Elsewhere()
    trainer.sampler = sampler
    trainer.save_state(tmp_path)
    trainer.sample(QUERIES)
    trainer.load_state(tmp_path)
    trainer.sample(QUERIES)
    assert sampler.updates == [0, 0]


@pytest.mark.parametrize("kind", ["lora", "dora", "modules_to_save", "tokens"])
def test_adapters_are_merged_into_what_is_sent(kind: str) -> None:
    peft = pytest.importorskip("peft")
    settings: dict[str, Any] = {"target_modules": ["c_attn"], "init_lora_weights": False}
    settings |= {
        "lora": {}, "dora": {"use_dora": True}, "modules_to_save": {"modules_to_save": ["ln_f"]},
        "tokens": {"trainable_token_indices": [4, 5]},
    }[kind]  # fmt: skip
    trainer = tiny.trainer(tiny.with_value_head("gpt2", peft_config=peft.LoraConfig(r=2, **settings)))
    queries, responses, scores = tiny.batch()
    trainer.step(queries, responses, scores)
    before = tiny.weights(trainer.model)
    sent = tiny.gpt2()
    missing = sent.load_state_dict({n: w.clone() for n, w in trainer.weights.tensors()}, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        expected = trainer.model.eval().pretrained_model(ids).logits
        torch.testing.assert_close(sent.eval()(ids).logits, expected, atol=2e-6, rtol=1e-5)
    after = tiny.weights(trainer.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_on_one_of_two_tied_weights_cannot_be_merged() -> None:
    peft = pytest.importorskip("peft")
    trainer = tiny.trainer(tiny.with_value_head("gpt2", peft_config=peft.LoraConfig(r=2, target_modules=["wte"])))
    with pytest.raises(ValueError, match=r"changes transformer\.wte, whose weight another module shares"):
        list(trainer.weights.tensors())


def test_weights_as_folders(tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
    trainer = tiny.trainer(tiny.with_value_head("gpt2", peft_config=settings))
    trainer.weights.save(tmp_path / "whole")
    trainer.weights.save_adapter(tmp_path / "adapter")
    ids = torch.tensor([[4, 5, 6, 7]])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        expected = trainer.model.eval().pretrained_model(ids).logits
        torch.testing.assert_close(whole(ids).logits, expected, atol=2e-6, rtol=1e-5)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def test_a_policy_without_an_adapter_has_none_to_save(tmp_path) -> None:
    with pytest.raises(ValueError, match="the policy has no adapter"):
        tiny.trainer().weights.save_adapter(tmp_path)
