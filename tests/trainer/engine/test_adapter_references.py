"""The reference of a policy with adapters is what training starts from, whatever trains, and stays so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, TrainableTokensConfig

from tests import tiny
from tests.tiny import AutoModelForCausalLMWithValueHead

IDS = torch.arange(10, 20).unsqueeze(0)


def lora(**options: Any) -> LoraConfig:
    own = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    return LoraConfig(**{**own, **options})


def adapted(peft_config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLMWithValueHead.from_pretrained(tiny.gpt2(), peft_config=peft_config)


def unfrozen(model: Any) -> Any:
    """A user's own choice: the norms train beside the adapter."""
    for name, parameter in model.pretrained_model.named_parameters():
        if ".ln_" in name:
            parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    "build",
    [
        lambda: adapted(lora(bias="all")),  # PEFT trains the base model's own biases
        lambda: adapted(lora(bias="lora_only")),
        lambda: adapted(lora(lora_bias=True)),
        lambda: adapted(lora(modules_to_save=["ln_f"])),
        lambda: adapted(LNTuningConfig(task_type="CAUSAL_LM")),
        lambda: adapted(TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[10, 11])),
        lambda: unfrozen(adapted(lora())),
        lambda: unfrozen(adapted(lora(init_lora_weights=False))),  # beside a frozen copy of the adapter
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_reference_stays_where_training_started(build):
    model = build()
    trainer = tiny.trainer(model, learning_rate=1e-1)
    with torch.no_grad():
        start = model.eval()(IDS)[0]
    assert trainer.step(*tiny.batch())["objective/kl"] == 0.0
    trainer.step(*tiny.batch())
    model.eval()
    with torch.no_grad():
        now = model(IDS)[0]
        with trainer.optional_peft_ctx():
            reference = model(IDS)[0]
        again = model(IDS)[0]
    assert (now - start).abs().max() > 1e-3
    torch.testing.assert_close(reference, start, rtol=0, atol=1e-5)
    assert torch.equal(now, again)


@pytest.mark.parametrize(("init", "what"), [("corda", "run `preprocess_corda` first"), ("loftq", "scipy|bitsandbytes")])
def test_starts_that_need_preparation_say_so(init, what):
    with pytest.raises((ValueError, ImportError), match=what):
        adapted(lora(init_lora_weights=init))
