"""Row B8: models with a nested `text_config`, and heads of any name: both are asked for, not guessed."""

from __future__ import annotations

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, GPT2PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from tests.models.tiny_models import WIDTH, inputs_of, plain
from trl_step.models import AutoModelForCausalLMWithValueHead, create_reference_model


def test_a_vision_language_model_trains() -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(plain("gemma3")).train()
    assert not hasattr(model.config, "hidden_size")
    assert model.v_head.summary.in_features == WIDTH
    logits, _, values = model(**inputs_of())
    (logits.square().mean() + values.mean()).backward()
    language = [p for name, p in model.named_parameters() if "language_model" in name]
    assert language
    assert all(parameter.grad is not None for parameter in language)
    assert model.v_head.summary.weight.grad is not None


def test_its_reference_is_a_copy() -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(plain("gemma3")).eval()
    assert torch.equal(create_reference_model(model)(**inputs_of())[0], model(**inputs_of())[0])


class WithWords(GPT2PreTrainedModel):
    """A language model of somebody's own, whose head has a name that nobody expects."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.to_words = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.to_words

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> CausalLMOutput:
        return CausalLMOutput(logits=self.to_words(self.transformer(input_ids)[0]))


def test_a_head_of_any_name() -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(WithWords(plain("gpt2").config)).eval()
    rows = torch.ones(3, 6, dtype=torch.bool)
    logits, _, values = model(**inputs_of())
    chosen_logits, _, chosen_values = model(**inputs_of(), rows=rows)
    torch.testing.assert_close(chosen_logits, logits[rows])
    torch.testing.assert_close(chosen_values, values[rows])
