"""Record checkpoints that old releases write, as data that `test_old_checkpoints.py` loads. For maintainers:

    python tests/models/record_checkpoints.py    # in an environment with the pins of tests/parity/record.py

Writes the folders of the installed release under `tests/models/data/<release>/`: whole models as safetensors, .bin,
and shards of both, an encoder-decoder model, a LoRA adapter with its base model, and a reward adapter; and
`expected.json`, what each of them says about one batch of ids.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # these releases ask the hub about folders; it must be set before the imports

import torch
import trl
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

DATA = Path(__file__).parent / "data"
SHARD = "2KB"
FORMATS = {
    "safetensors": {"safe_serialization": True},
    "bin": {"safe_serialization": False},
    "safetensors-shards": {"safe_serialization": True, "max_shard_size": SHARD},
    "bin-shards": {"safe_serialization": False, "max_shard_size": SHARD},
}
GPT2 = {"vocab_size": 12, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
IDS = [[3, 4, 5, 6], [7, 8, 9, 3]]


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that no initialization gives, so that a tensor that is not loaded shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return model.eval()


def rounded(tensor: torch.Tensor) -> list:
    return tensor.double().mul(1e6).round().div(1e6).tolist()


def answers(model: torch.nn.Module, **inputs: torch.Tensor) -> dict:
    with torch.no_grad():
        logits, _, values = model(input_ids=torch.tensor(IDS), **inputs)
    return {"logits": rounded(logits), "values": rounded(values)}


def without_extras(folder: str) -> None:
    for name in ("README.md", "generation_config.json"):
        Path(folder, name).unlink(missing_ok=True)


def main() -> None:
    torch.manual_seed(0)
    target = DATA / trl.__version__
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    os.chdir(target)  # an adapter keeps the path of its base model: let it be a relative one
    expected = {}

    gpt2 = shaken(AutoModelForCausalLMWithValueHead.from_pretrained(GPT2LMHeadModel(GPT2Config(**GPT2))))
    for name, options in FORMATS.items():
        gpt2.save_pretrained(f"gpt2-{name}", **options)
        without_extras(f"gpt2-{name}")
        expected[f"gpt2-{name}"] = answers(gpt2)

    t5_config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    t5 = shaken(AutoModelForSeq2SeqLMWithValueHead.from_pretrained(T5ForConditionalGeneration(t5_config)))
    t5.save_pretrained("t5")
    without_extras("t5")
    expected["t5"] = answers(t5, decoder_input_ids=torch.tensor(IDS))

    shaken(GPT2LMHeadModel(GPT2Config(**GPT2))).save_pretrained("base")
    without_extras("base")
    lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = AutoModelForCausalLMWithValueHead.from_pretrained("base", peft_config=lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    os.makedirs("adapter")
    adapted.save_pretrained("adapter", save_embedding_layers=False)  # "auto" asks the hub about the base model
    without_extras("adapter")
    expected["adapter"] = answers(adapted.eval())

    classifier = GPT2ForSequenceClassification.from_pretrained("base", num_labels=1)
    classifier.config.pad_token_id = 0
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    reward = get_peft_model(classifier, lora)
    for parameter in reward.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    reward.save_pretrained("reward", save_embedding_layers=False)
    without_extras("reward")
    scored = AutoModelForCausalLMWithValueHead.from_pretrained("base", peft_config=lora, reward_adapter="reward")
    expected["reward"] = {"scores": rounded(scored.compute_reward_score(torch.tensor(IDS)))}

    Path("expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
