"""Row A5: with `exact_v07` the reference is that of release 0.7.11, the base model without any adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import GPT2LMHeadModel

from tests.tiny import batch, gpt2, trainer
from trl_step import AutoModelForCausalLMWithValueHead


@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_the_base_model_is_the_reference_of_a_trained_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt2().save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "base"), peft_config=lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")

    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "adapter"), is_trainable=True)
    queries, responses, scores = batch()
    stats = trainer(model, exact_v07=True).step(queries, responses, scores)
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()
    for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
        with torch.no_grad():
            logits = base(torch.cat((query, response))[None]).logits[0, len(query) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, response[:, None])[:, 0]
        found = stats["objective/ref_logprobs"][i, len(query) - 1 : len(query) - 1 + len(response)]
        torch.testing.assert_close(found, expected)
