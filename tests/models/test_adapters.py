from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.models.tiny_models import (
    WIDTH,
    inputs_of,
    lora,
    plain,
    same_state,
    shake_adapters,
    trained_adapter,
    wrapped,
)
from trl_step.models import AutoModelForCausalLMWithValueHead
from trl_step.models.adapters import active_adapter

Wrapper = AutoModelForCausalLMWithValueHead


def state_of(model: torch.nn.Module) -> tuple[Any, ...]:
    """What switching adapters could disturb."""
    return (
        model.pretrained_model.active_adapter,
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        [module.training for module in model.modules()],
        torch.get_rng_state().tolist(),
    )


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of())[0]


@pytest.fixture
def reward_adapter(tmp_path: Path) -> Path:
    """A trained adapter of a sequence classifier with two labels."""
    from transformers import AutoModelForSequenceClassification

    plain("gpt2").save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    base.config.pad_token_id = 0
    model = get_peft_model(base, lora(task_type="SEQ_CLS"))
    shake_adapters(model, seed=9).save_pretrained(tmp_path / "reward")
    return tmp_path / "reward"


@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_a_fresh_adapter_is_what_is_trained(tmp_path: Path) -> None:
    plain("gpt2").save_pretrained(tmp_path)
    for source in (str(tmp_path), plain("gpt2")):
        model = Wrapper.from_pretrained(source, peft_config=lora())
        assert model.is_peft_model
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained
        assert all("lora_" in name or name.startswith("v_head.") for name in trained)


def test_a_trained_adapter_is_loaded_with_its_value_head(tmp_path: Path) -> None:
    before = trained_adapter(tmp_path)
    model = Wrapper.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(model), logits(before))
    assert torch.equal(model.v_head.summary.weight, before.v_head.summary.weight)


@pytest.mark.parametrize("is_trainable", [True, False])
def test_is_trainable(tmp_path: Path, is_trainable: bool) -> None:
    trained_adapter(tmp_path)
    model = Wrapper.from_pretrained(tmp_path / "adapter", is_trainable=is_trainable)
    trained = {name for name, parameter in model.pretrained_model.named_parameters() if parameter.requires_grad}
    assert bool(trained) == is_trainable
    assert all("lora_" in name and ".default." in name for name in trained)


def test_a_trained_adapter_wins_over_peft_config(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    with pytest.warns(UserWarning, match="peft_config is ignored"):
        model = Wrapper.from_pretrained(tmp_path / "adapter", peft_config=lora(r=7))
    assert model.pretrained_model.peft_config["default"].r == 2


def test_an_adapter_without_weights_is_said(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has an adapter_config\.json, but neither"):
        Wrapper.from_pretrained(tmp_path / "adapter")


def test_an_adapter_without_a_base_is_said(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tmp_path / "base"), ""))
    with pytest.raises(ValueError, match="no base_model_name_or_path"):
        Wrapper.from_pretrained(tmp_path / "adapter")


def test_prompt_learning_is_refused() -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="PREFIX_TUNING adds virtual tokens"):
        wrapped(peft_config=config)


def test_the_trained_adapter_may_have_any_name() -> None:
    peft_model = get_peft_model(plain("gpt2"), lora(), adapter_name="mine")
    assert Wrapper.from_pretrained(peft_model).policy_adapter_name == "mine"


@pytest.mark.parametrize("is_trainable", [True, False])
@pytest.mark.parametrize("is_trained", [True, False])
def test_switching_restores_everything_also_after_an_error(
    tmp_path: Path, is_trained: bool, is_trainable: bool
) -> None:
    trained_adapter(tmp_path)
    if is_trained:
        model = Wrapper.from_pretrained(tmp_path / "adapter", is_trainable=is_trainable).train()
    else:
        model = wrapped(peft_config=lora()).requires_grad_(is_trainable).train()
    model.pretrained_model.base_model.model.transformer.h[0].eval()
    before = state_of(model)
    with model.reference_adapter():
        adapters = [p for name, p in model.pretrained_model.named_parameters() if "lora_" in name]
        assert not any(parameter.requires_grad for parameter in adapters)
    assert state_of(model) == before
    with pytest.raises(KeyError), model.reference_adapter():
        raise KeyError
    with pytest.raises(KeyError), active_adapter(model.pretrained_model, "default"):
        raise KeyError
    assert state_of(model) == before


def test_the_reference_is_not_saved(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    model = Wrapper.from_pretrained(tmp_path / "adapter", is_trainable=True)
    model.save_pretrained(tmp_path / "again")
    assert "reference" in model.pretrained_model.peft_config
    assert not (tmp_path / "again" / "reference").exists()


def test_the_reference_does_not_stand_between_the_parameters(tmp_path: Path) -> None:
    """Two models are compared parameter by parameter, and the first one has no reference yet."""
    saved = trained_adapter(tmp_path)
    loaded = Wrapper.from_pretrained(tmp_path / "adapter")
    assert (saved.reference_adapter_name, loaded.reference_adapter_name) == (None, "reference")
    ours, theirs = ([*model.named_parameters()] for model in (saved, loaded))
    assert [name for name, _ in theirs[: len(ours)]] == [name for name, _ in ours]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(ours, theirs, strict=False))
    extra = [name for name, _ in theirs[len(ours) :]]
    assert extra
    assert all(".reference." in name for name in extra)
    assert [id(parameter) for parameter in loaded.parameters()] == [id(parameter) for _, parameter in theirs]


def test_a_peft_model_with_a_reference_is_wrapped_again(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    first = Wrapper.from_pretrained(tmp_path / "adapter", is_trainable=True)
    second = Wrapper.from_pretrained(first.pretrained_model)
    assert second.reference_adapter_name == "reference"


def test_an_adapter_with_trained_modules(tmp_path: Path) -> None:
    """Modules that are trained whole belong to the adapter: switched with it, in the state dict, in the files."""
    before = trained_adapter(tmp_path, modules_to_save=["ln_f"])
    model = Wrapper.from_pretrained(tmp_path / "adapter", is_trainable=True).eval()
    assert torch.equal(logits(model), logits(before))
    shake_adapters(model, seed=8)
    assert not torch.equal(logits(model), logits(before))
    with model.reference_adapter():
        assert torch.equal(logits(model), logits(before))
    other = Wrapper.from_pretrained(tmp_path / "adapter", is_trainable=True).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))
    assert not any("original_module" in name for name in model.state_dict())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("ln_f" in name for name in trained)
    assert not any(".reference." in name for name in trained)


def test_frozen_adapters_are_in_the_state_dict_too(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    names = list(Wrapper.from_pretrained(tmp_path / "adapter").state_dict())
    assert sum(".default." in name for name in names) == sum(".reference." in name for name in names) == 6


def test_reward_scores(reward_adapter: Path) -> None:
    """The oracle is the classifier itself, through its own library, at its last token."""
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(reward_adapter.parent / "base", num_labels=2)
    base.config.pad_token_id = 0
    oracle = PeftModel.from_pretrained(base, str(reward_adapter)).eval()
    model = wrapped(peft_config=lora(), reward_adapter=str(reward_adapter))
    shake_adapters(model)
    model.pretrained_model.base_model.model.transformer.ln_f.weight.requires_grad_(True)
    policy_before, before = logits(model), state_of(model.train())
    scores = model.compute_reward_score(**inputs_of())
    assert scores.shape == (3, 6, 2)
    assert not scores.requires_grad
    torch.testing.assert_close(scores[:, -1], oracle(**inputs_of()).logits)
    assert state_of(model) == before
    assert torch.equal(logits(model.eval()), policy_before)


def test_a_reward_score_does_not_depend_on_padding(reward_adapter: Path) -> None:
    """GPT-2 counts positions from the first column: padding on the left moved them."""
    model = wrapped(peft_config=lora(), reward_adapter=str(reward_adapter))
    alone = model.compute_reward_score(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.int64))[0, -1]
    left = model.compute_reward_score(torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]))[0, -1]
    right = model.compute_reward_score(torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]]))[0, 1]
    torch.testing.assert_close(left, alone)
    torch.testing.assert_close(right, alone)


def test_a_reward_adapter_is_never_trained(reward_adapter: Path) -> None:
    model = wrapped(peft_config=lora(), reward_adapter=str(reward_adapter), reward_adapter_name="judge")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any("judge" in name or name.startswith("score.") for name in trained)
    model.compute_reward_score(**inputs_of())
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


def test_a_reward_adapter_beside_a_trained_one(tmp_path: Path, reward_adapter: Path) -> None:
    before = trained_adapter(tmp_path / "policy_base_differs")
    model = Wrapper.from_pretrained(
        tmp_path / "policy_base_differs" / "adapter", is_trainable=True, reward_adapter=str(reward_adapter)
    ).eval()
    model.compute_reward_score(**inputs_of())
    with model.reference_adapter():
        assert torch.equal(logits(model), logits(before))


def test_the_bias_of_a_score_head(reward_adapter: Path) -> None:
    """A bias anywhere else in the file is none of the head."""
    path = reward_adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    assert wrapped(peft_config=lora(), reward_adapter=str(reward_adapter)).score.bias is None
    save_file({**tensors, "base_model.model.score.bias": torch.tensor([3.0, 4.0])}, path)
    assert wrapped(peft_config=lora(), reward_adapter=str(reward_adapter)).score.bias.tolist() == [3.0, 4.0]
    save_file({**tensors, "base_model.model.transformer.h.0.attn.c_attn.bias": torch.zeros(1)}, path)
    assert wrapped(peft_config=lora(), reward_adapter=str(reward_adapter)).score.bias is None


def test_reward_errors(tmp_path: Path, reward_adapter: Path) -> None:
    with pytest.raises(ValueError, match="reward_adapter must be a folder or a hub name"):
        wrapped(peft_config=lora(), reward_adapter=3)
    with pytest.raises(ValueError, match="reward_adapter needs a model with an adapter"):
        wrapped(reward_adapter=str(reward_adapter))
    with pytest.raises(ValueError, match="no reward adapter"):
        wrapped(peft_config=lora()).compute_reward_score(**inputs_of())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no adapter is found in .*empty"):
        wrapped(peft_config=lora(), reward_adapter=str(tmp_path / "empty"))
    headless = {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(2, WIDTH)}
    save_file(headless, reward_adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has no score head: no tensor of it is called score"):
        wrapped(peft_config=lora(), reward_adapter=str(reward_adapter))


def test_the_state_dict_leaves_the_frozen_base_out() -> None:
    model = wrapped(peft_config=lora())
    names = list(model.state_dict())
    assert names[-2:] == ["v_head.summary.weight", "v_head.summary.bias"]
    assert all("lora_" in name for name in names[:-2])
    copy = wrapped(peft_config=lora())
    shake_adapters(copy)
    copy.load_state_dict(model.state_dict())
    assert same_state(copy, model)
    lacking = {name: tensor for name, tensor in model.state_dict().items() if "h.1." not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*h\.1\.attn\.c_attn\.lora_A"):
        copy.load_state_dict(lacking)


def test_base_weights_that_are_trained_are_in_the_state_dict() -> None:
    model = wrapped(peft_config=lora())
    model.pretrained_model.base_model.model.transformer.ln_f.weight.requires_grad_(True)
    assert "base_model.model.transformer.ln_f.weight" in model.state_dict()
