"""Adapters on base weights in 4 and 8 bits (QLoRA), in every trainer; bitsandbytes has kernels for CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("bitsandbytes")

import bitsandbytes
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

from tests import tiny
from tests.trainer.text.text_tools import arguments, preferences, tokenizer, words
from trl_step import (
    AutoModelForCausalLMWithValueHead,
    DPOTrainer,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTTrainer,
)

BITS = [4, 8]


def lora(task: str = "CAUSAL_LM") -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type=task)


def quantization(bits: int) -> BitsAndBytesConfig:
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama, whose rows are as long as a block of 4-bit numbers."""
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {**tiny.SIZES, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**sizes, **tiny.IDS)).save_pretrained(path)
    return str(path)


def load(folder: str, bits: int, cls: Any = AutoModelForCausalLM, **options: Any) -> Any:
    torch.manual_seed(0)
    return cls.from_pretrained(folder, quantization_config=quantization(bits), dtype=torch.float32, **options)


def quantized_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    kinds = (bitsandbytes.nn.Params4bit, bitsandbytes.nn.Int8Params)
    return {name: p.detach().clone() for name, p in model.named_parameters() if isinstance(p, kinds)}


def adapter_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name and "default" in name}


def check_training(model: Any, train: Any) -> None:
    """`train()` moves every adapter, and no weight in few bits."""
    base, adapters = quantized_weights(model), adapter_weights(model)
    assert base
    assert adapters
    train()
    assert all(torch.equal(after, base[name]) for name, after in quantized_weights(model).items())
    moved = {name: after for name, after in adapter_weights(model).items() if not torch.equal(after, adapters[name])}
    assert moved.keys() == adapters.keys()
    assert all(torch.isfinite(after).all() for after in moved.values())


def dequantized(folder: str) -> LlamaForCausalLM:
    """The model of 4 bits with its weights written out in float32."""
    quantized, plain = load(folder, 4), LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    written = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in quantized.named_parameters():
            if isinstance(parameter, bitsandbytes.nn.Params4bit):
                whole = bitsandbytes.functional.dequantize_4bit(parameter.data, parameter.quant_state)
                written[name].copy_(whole.view_as(written[name]))
    return plain


def ppo(base: Any, **options: Any) -> PPOTrainer:
    torch.manual_seed(0)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(base, peft_config=lora(), **options)
    torch.nn.init.normal_(model.v_head.summary.weight, std=0.2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    return PPOTrainer(tiny.config(), model, None, tiny.tokenizer(), optimizer=optimizer)


@pytest.mark.parametrize("bits", BITS)
def test_ppo(folder: str, bits: int) -> None:
    trainer = ppo(load(folder, bits))
    seen: dict[str, Any] = {}
    check_training(trainer.model, lambda: seen.update(trainer.step(*tiny.batch())))
    assert seen["ppo/policy/ratio_error"] < 1e-5
    queries, _, _ = tiny.batch()
    assert len(trainer.generate(queries, return_prompt=False, max_new_tokens=3)) == len(queries)


@pytest.mark.parametrize("bits", BITS)
def test_ppo_of_a_folder_in_few_bits(folder: str, bits: int) -> None:
    trainer = ppo(folder, **{f"load_in_{bits}bit": True})
    check_training(trainer.model, lambda: trainer.step(*tiny.batch()))


def test_ppo_in_4_bits_is_that_of_the_weights_written_out(folder: str) -> None:
    found = []
    for base in (load(folder, 4), dequantized(folder)):
        trainer = ppo(base)
        before = adapter_weights(trainer.model)
        loss = trainer.step(*tiny.batch())["ppo/loss/total"]
        moves = [(after - before[name]).flatten() for name, after in adapter_weights(trainer.model).items()]
        found.append((loss, torch.cat(moves)))
    (loss, move), (expected_loss, expected_move) = found
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (move - expected_move).norm() < 1e-4 * expected_move.norm()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bf16", [False, True])
def test_sft(folder: str, bits: int, bf16: bool, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": [words(6, seed) for seed in range(6)]})
    trainer = SFTTrainer(
        load(folder, bits), arguments(tmp_path, bf16=bf16), train_dataset=rows, eval_dataset=rows,
        tokenizer=tokenizer(), dataset_text_field="text", max_seq_length=16, peft_config=lora(),
    )  # fmt: skip
    trainer.evaluate()  # a pass in eval mode must not end the training
    check_training(trainer.model, trainer.train)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bf16", [False, True])
def test_reward(folder: str, bits: int, bf16: bool, tmp_path: Path) -> None:
    model = load(folder, bits, AutoModelForSequenceClassification, num_labels=1)
    rows = preferences().map(
        lambda row: {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
    )
    trainer = RewardTrainer(
        model, arguments(tmp_path, RewardConfig, max_length=16, bf16=bf16), train_dataset=rows,
        tokenizer=tokenizer(), peft_config=lora("SEQ_CLS"),
    )  # fmt: skip
    check_training(trainer.model, trainer.train)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bf16", [False, True])
def test_dpo(folder: str, bits: int, bf16: bool, tmp_path: Path) -> None:
    """With bf16 the adapters are cast, so that the passes before the training need autocast as well."""
    trainer = DPOTrainer(
        load(folder, bits), args=arguments(tmp_path, TrainingArguments, bf16=bf16), train_dataset=preferences(),
        tokenizer=tokenizer(), peft_config=lora(), max_length=16, max_prompt_length=8,
    )  # fmt: skip
    assert trainer.ref_adapter_name is None, "a fresh adapter's reference is the base model"
    check_training(trainer.model, trainer.train)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-2)
