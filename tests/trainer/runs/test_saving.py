"""What is saved can be loaded again, and a hub that fails never loses a step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, TrainingArguments

from tests.hub_tools import Hub
from tests.models.tiny_models import trained_adapter
from tests.tiny import batch, config, gpt2, tokenizer, trainer, weights, with_value_head
from trl_step import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOTrainer, SFTTrainer

PAIRS = {
    "gpt2": (AutoModelForCausalLMWithValueHead, AutoModelForCausalLM),
    "llama": (AutoModelForCausalLMWithValueHead, AutoModelForCausalLM),
    "t5": (AutoModelForSeq2SeqLMWithValueHead, AutoModelForSeq2SeqLM),
    "bart": (AutoModelForSeq2SeqLMWithValueHead, AutoModelForSeq2SeqLM),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_folder_reloads_with_the_wrapper_and_as_a_plain_model(name: str, tmp_path: Path) -> None:
    ours = trainer(name)
    ours.step(*batch())
    ours.save_pretrained(str(tmp_path / "policy"))
    wrapper, plain = PAIRS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = wrapper.from_pretrained(str(tmp_path / "policy"))
    saved = weights(ours.model)
    assert {key: value.tolist() for key, value in weights(again).items()} == {k: v.tolist() for k, v in saved.items()}
    bare, info = plain.from_pretrained(str(tmp_path / "policy"), output_loading_info=True)
    assert not info["missing_keys"]
    for key, value in bare.named_parameters():
        assert torch.equal(value, saved[f"pretrained_model.{key}"]), key
    words = AutoTokenizer.from_pretrained(str(tmp_path / "policy"))
    assert words.get_vocab() == ours.tokenizer.get_vocab()


def test_training_goes_on_from_the_folder(tmp_path: Path) -> None:
    ours = trainer("gpt2", mini_batch_size=8)
    ours.step(*batch())
    ours.save_pretrained(str(tmp_path / "policy"))
    again = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "policy"))
    stats = trainer(again, mini_batch_size=8).step(*batch(seed=2))
    expected = ours.step(*batch(seed=2))
    assert torch.equal(stats["objective/logprobs"], expected["objective/logprobs"])
    assert stats["ppo/val/mean"] == pytest.approx(expected["ppo/val/mean"], rel=1e-4)


def test_an_adapter_is_saved_with_its_value_head(tmp_path: Path) -> None:
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True)
    ours = trainer(with_value_head("gpt2", peft_config=lora), learning_rate=1e-2)
    ours.step(*batch())
    ours.save_pretrained(str(tmp_path / "adapter"))
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= files
    assert not any(name.endswith(".bin") for name in files)
    assert "trl_step" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_model_card_says_what_it_is_and_how_to_load_it(name: str, tmp_path: Path) -> None:
    trainer(name, learning_rate=1.5e-3).create_model_card(str(tmp_path / "policy"), "My Policy")
    card = (tmp_path / "policy" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# My Policy" in card
    assert "| learning_rate | 0.0015 |" in card
    assert f'{PAIRS[name][0].__name__}.from_pretrained("policy")' in card


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_code_of_the_model_card_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(name).save_pretrained(str(tmp_path / "policy"))
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "policy" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["model"].config.vocab_size == 60


# --- the hub ---------------------------------------------------------------------------------------------------


def test_push_to_hub_uploads_the_folder(hub: Hub) -> None:
    address = trainer("gpt2").push_to_hub("me/policy", commit_message="mine", private=True, token="t", branch="b")
    assert address == "https://hub/commit/1"
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= hub.uploads[0]
    assert hub.calls[0] == ("HfApi", {"token": "t"})
    assert hub.calls[1] == ("create_repo", {"repo_id": "me/policy", "private": True, "exist_ok": True})
    assert hub.calls[2][1] == {"repo_id": "me/policy", "commit_message": "mine", "revision": "b", "create_pr": False}


def test_save_pretrained_pushes_when_asked(hub: Hub, tmp_path: Path) -> None:
    ours = trainer("gpt2")
    ours.save_pretrained(str(tmp_path / "policy"))
    assert hub.calls == []
    ours.save_pretrained(str(tmp_path / "policy"), push_to_hub=True)
    assert hub.calls[1][1]["repo_id"] == "policy"
    ours.save_pretrained(str(tmp_path / "policy"), push_to_hub=True, repo_id="me/other")
    assert hub.calls[-2][1]["repo_id"] == "me/other"


def steps_with(hub: Hub, compare_steps: int, means: list[float]) -> list[int]:
    """Number of uploads after each step, where the mean scores are `means`."""
    ours = trainer("gpt2", push_to_hub_if_best_kwargs={"repo_id": "me/best"}, compare_steps=compare_steps)
    seen = []
    for mean in means:
        queries, responses, _ = batch()
        ours.step(queries, responses, [mean] * 8)
        seen.append(len(hub.uploads))
    return seen


def test_the_best_policy_is_pushed_where_that_is_asked_for(hub: Hub) -> None:
    assert steps_with(hub, 1, [0.0, 1.0, 0.5, 2.0]) == [1, 2, 2, 3]


def test_it_is_looked_at_every_few_steps(hub: Hub) -> None:
    assert steps_with(hub, 2, [0.0, 9.0, 1.0, 9.0, 0.5]) == [1, 1, 2, 2, 2]


def test_a_push_that_is_asked_for_fails_aloud(hub: Hub) -> None:
    hub.error = ConnectionError("no network")
    with pytest.raises(ConnectionError, match="no network"):
        trainer("gpt2").push_to_hub("me/policy")


def test_saving_leaves_the_trainer_as_it_was(tmp_path: Path) -> None:
    ours = PPOTrainer(config(), with_value_head("gpt2"), None, tokenizer())
    before, modes = weights(ours.model), [module.training for module in ours.model.modules()]
    ours.save_pretrained(str(tmp_path / "policy"))
    assert all(torch.equal(before[key], value) for key, value in weights(ours.model).items())
    assert [module.training for module in ours.model.modules()] == modes


def test_model_cards_hold_no_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained_adapter(tmp_path)
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter", is_trainable=True)
    ours = trainer(policy, model_name=str(tmp_path / "adapter"))
    ours.save_pretrained(tmp_path / "policy")
    policy.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    trainer(policy, model_name="./adapter").create_model_card(str(tmp_path / "relative"))
    cards = [(tmp_path / name / "README.md").read_text() for name in ("policy", "model", "relative")]
    assert not [card for card in cards if str(tmp_path) in card or "./adapter" in card]
    assert "| model_name | adapter |" in cards[0]
    assert "| model_name | adapter |" in cards[2]
    assert "library_name: peft" in cards[1]
    assert "| model_name | lvwerra/gpt2-imdb |" in card_of("lvwerra/gpt2-imdb", tmp_path)


def card_of(model_name: str, folder: Path) -> str:
    trainer(model_name=model_name).create_model_card(str(folder))
    return (folder / "README.md").read_text()


def test_model_cards_of_text_trainers_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ours = SFTTrainer(
        model,
        TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True),
        train_dataset=Dataset.from_dict({"text": ["w5 w6 w7"] * 4}),
        tokenizer=tokenizer(),
        dataset_text_field="text",
        max_seq_length=8,
        peft_config=LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True),
    )
    ours.save_model(str(tmp_path / "out"))
    ours.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card
    assert str(tmp_path) not in card
