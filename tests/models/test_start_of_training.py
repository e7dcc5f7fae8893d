"""What training starts from, and so what the reference is, for every way to come by a model with adapters."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.models.tiny_models import inputs_of, lora, plain, shake_adapters, trained_adapter, wrapped
from trl_step.models import AutoModelForCausalLMWithValueHead

Wrapper = AutoModelForCausalLMWithValueHead


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model.eval()(**inputs_of())
    return output[0] if isinstance(output, tuple) else output.logits


def reference_logits(model: Any) -> torch.Tensor:
    with model.reference_adapter():
        return logits(model)


def check_start(model: Any, want: torch.Tensor | None = None) -> None:
    """Policy and reference are the same now, and the reference stays where it is."""
    start = logits(model)
    if want is not None:
        torch.testing.assert_close(start, want)
    torch.testing.assert_close(reference_logits(model), start)
    shake_adapters(model, seed=77)
    assert not torch.allclose(logits(model), start, atol=1e-2)
    torch.testing.assert_close(reference_logits(model), start)


# --- adapters that change the base model ------------------------------------------------------------------------


def llama_lora(init: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=init)


@pytest.mark.parametrize("from_folder", [True, False])
@pytest.mark.parametrize("init", [True, False, "gaussian", "pissa", "pissa_niter_4", "olora", "eva", "orthogonal"])
@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_a_new_adapter_starts_from_itself(tmp_path: Path, init: Any, from_folder: bool) -> None:
    base: Any = plain("llama")
    want = logits(base) if init is not False else None
    if from_folder:
        base.save_pretrained(tmp_path)
        base = tmp_path
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pissa_niter")
        model = Wrapper.from_pretrained(base, peft_config=llama_lora(init))
    check_start(model, want)


def test_an_adapter_that_changes_nothing_is_not_held_twice() -> None:
    assert wrapped(peft_config=lora()).reference_adapter_name is None
    assert Wrapper(get_peft_model(plain("gpt2"), lora())).reference_adapter_name is None


def test_an_adapter_that_changed_a_few_tokens_only_is_not_fresh() -> None:
    """Neither of the two tokens that every model is asked about is among them."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], trainable_token_indices=[4])
    model = get_peft_model(plain("llama"), config)
    for name, parameter in model.named_parameters():
        if "trainable_tokens" in name:
            parameter.data.normal_()
    policy = Wrapper(model)
    ids = torch.tensor([[4, 5, 4]])
    start = policy.eval()(input_ids=ids)[0].detach()
    with policy.reference_adapter():
        torch.testing.assert_close(policy(input_ids=ids)[0].detach(), start)


# --- the constructor -----------------------------------------------------------------------------------------------


def test_the_constructor_keeps_a_trained_adapter_as_the_reference() -> None:
    trained = shake_adapters(get_peft_model(plain("gpt2"), lora()))
    check_start(Wrapper(trained), logits(trained))


def test_the_constructor_refuses_what_it_does_not_know() -> None:
    for unknown in ({"peft_config": lora()}, {"is_trainable": True}, {"sumary_dropout_prob": 0.0}):
        with pytest.raises(ValueError, match=rf"{next(iter(unknown))}.*from_pretrained"):
            Wrapper(plain("gpt2"), **unknown)


def test_the_constructor_refuses_prompt_learning() -> None:
    from peft import PrefixTuningConfig

    prefix = get_peft_model(plain("gpt2"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PREFIX_TUNING adds virtual tokens"):
        Wrapper(prefix)


def test_arguments_for_loading_beside_a_model_object_are_said() -> None:
    with pytest.warns(UserWarning, match=r"ignored.*device_mapp.*peft_cofig"):
        Wrapper.from_pretrained(plain("gpt2"), device_mapp="auto", peft_cofig=lora())


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [True, False])
def test_an_adapter_of_the_users_called_reference_is_the_users(tmp_path: Path, active: bool) -> None:
    model = shake_adapters(get_peft_model(plain("gpt2"), lora(), adapter_name="reference" if active else "mine"))
    if not active:
        model.add_adapter("reference", lora())
        model.set_adapter("mine")
    own = {name: p.detach().clone() for name, p in model.named_parameters() if ".reference." in name}
    policy = Wrapper.from_pretrained(model)
    assert policy.reference_adapter_name not in (None, "reference")
    check_start(policy)
    policy.save_pretrained(tmp_path)
    written = load_file(tmp_path / "reference" / "adapter_model.safetensors")
    assert len(written) == len(own) == 6
    assert not (tmp_path / policy.reference_adapter_name).exists()


def test_a_reward_adapter_does_not_take_the_place_of_another(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    trained_adapter(tmp_path)
    judge = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    judge.config.pad_token_id = 0
    shake_adapters(get_peft_model(judge, lora(task_type="SEQ_CLS")), seed=9).save_pretrained(tmp_path / "reward")
    arguments = {"is_trainable": True, "reward_adapter": str(tmp_path / "reward")}
    with pytest.raises(ValueError, match="reward_adapter_name='default'"):
        Wrapper.from_pretrained(tmp_path / "adapter", reward_adapter_name="default", **arguments)
    model = Wrapper.from_pretrained(tmp_path / "adapter", reward_adapter_name="reference", **arguments)
    scores = model.compute_reward_score(**inputs_of())
    check_start(model)
    torch.testing.assert_close(model.compute_reward_score(**inputs_of()), scores)
    with pytest.raises(ValueError, match="reward_adapter_name='frozen_reference'"):
        Wrapper.from_pretrained(model.pretrained_model, reward_adapter_name="frozen_reference", **arguments)


# --- an adapter inside a plain transformers model -------------------------------------------------------------------


def test_an_adapter_inside_a_plain_model_is_saved_with_the_value_head(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    inside = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    model = Wrapper.from_pretrained(inside)
    torch.nn.init.normal_(model.v_head.summary.weight)
    model.save_pretrained(tmp_path / "again")
    loaded = Wrapper.from_pretrained(tmp_path / "again", is_trainable=True)
    assert torch.equal(loaded.v_head.summary.weight, model.v_head.summary.weight)
    torch.testing.assert_close(logits(loaded), logits(model))


def test_a_new_adapter_over_one_inside_a_plain_model_is_refused(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    inside = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"already has an adapter.*merge_and_unload"):
        Wrapper.from_pretrained(inside, peft_config=lora())


def test_the_inside_of_a_peft_model_is_refused() -> None:
    model = get_peft_model(plain("gpt2"), lora())
    injected = inject_adapter_in_model(lora(), plain("gpt2"))
    for inside in (model.get_base_model(), injected):
        with pytest.raises(ValueError, match=r"adapter layers.*PeftModel itself"):
            Wrapper.from_pretrained(inside)


def test_a_peft_config_beside_a_peft_model_is_said() -> None:
    with pytest.warns(UserWarning, match="peft_config is ignored"):
        Wrapper.from_pretrained(get_peft_model(plain("gpt2"), lora()), peft_config=lora(r=7))


def test_an_adapter_whose_base_is_an_adapter_is_refused(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    trained_adapter(tmp_path / "second")
    config = tmp_path / "second" / "adapter" / "adapter_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(tmp_path / "adapter")})
    )
    with pytest.raises(ValueError, match=r"is an adapter itself.*merge_and_unload"):
        Wrapper.from_pretrained(tmp_path / "second" / "adapter")


# --- after merging ---------------------------------------------------------------------------------------------------


def test_a_merged_model_is_saved_whole(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    model = Wrapper.from_pretrained(tmp_path / "adapter", is_trainable=True)
    want = logits(model)
    model.pretrained_model = model.pretrained_model.merge_and_unload()
    assert not model.is_peft_model
    model.is_peft_model = False
    with pytest.warns(UserWarning, match="is_peft_model = True has no effect"):
        model.is_peft_model = True
    assert not model.is_peft_model
    torch.testing.assert_close(logits(model), want)
    model.save_pretrained(tmp_path / "merged")
    loaded = Wrapper.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(loaded), want)
    assert torch.equal(loaded.v_head.summary.weight, model.v_head.summary.weight)
    with pytest.raises(ValueError, match="no adapters"), model.reference_adapter():
        pass


def test_a_model_that_gets_adapters_later_is_saved_as_one(tmp_path: Path) -> None:
    plain("gpt2").save_pretrained(tmp_path / "base")
    model = Wrapper.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.pretrained_model = shake_adapters(get_peft_model(model.pretrained_model, lora()))
    assert model.is_peft_model
    model.save_pretrained(tmp_path / "adapter")
    loaded = Wrapper.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(model))
    assert isinstance(loaded.pretrained_model, PeftModel)


# --- adapters that change the base model by chance --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_a_random_decomposition_is_said_when_it_is_made_and_when_it_is_loaded(tmp_path: Path) -> None:
    """Another decomposition of the base weights is drawn at loading: the saved adapter does not fit it."""
    plain("llama").save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match=r"pissa_niter_4.*merge_and_unload"):
        model = Wrapper.from_pretrained(tmp_path / "base", peft_config=llama_lora("pissa_niter_4"))
    want = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match=r"pissa_niter_4.*merge_and_unload"):
        loaded = Wrapper.from_pretrained(tmp_path / "adapter")
    assert not torch.allclose(logits(loaded), want, atol=1e-3)
    model.pretrained_model = model.pretrained_model.merge_and_unload()
    model.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(Wrapper.from_pretrained(tmp_path / "merged")), want)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_a_decomposition_that_is_not_random_is_loaded_as_it_was(tmp_path: Path, init: str) -> None:
    plain("llama").save_pretrained(tmp_path / "base")
    model = Wrapper.from_pretrained(tmp_path / "base", peft_config=llama_lora(init))
    shake_adapters(model).save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(Wrapper.from_pretrained(tmp_path / "adapter")), logits(model))
