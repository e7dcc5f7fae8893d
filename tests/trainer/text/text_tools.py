"""Small datasets, arguments and adapters for the trainers of texts."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast, TrainingArguments

from tests import tiny


def tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Splits at spaces; words w4 .. w59 for the ids 4 .. 59, special tokens that no word contains before them."""
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(4, tiny.VOCABULARY))])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side=padding_side,
        **dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), special, strict=True)),
    )  # fmt: skip


def words(count: int, seed: int) -> str:
    """`count` words of the tiny tokenizer, none of them special."""
    stream = torch.Generator().manual_seed(seed)
    return " ".join(f"w{i}" for i in torch.randint(4, tiny.VOCABULARY, (count,), generator=stream).tolist())


def preferences(rows: int = 6) -> Dataset:
    """Prompts of three words, answers of four; a chosen answer is made of w10, a rejected one of w20."""
    return Dataset.from_dict(
        {
            "prompt": [words(3, seed) for seed in range(rows)],
            "chosen": [" w10 w10 w11 " + words(1, seed + 100) for seed in range(rows)],
            "rejected": [" w20 w20 w21 " + words(1, seed + 200) for seed in range(rows)],
        }
    )


def arguments(folder: Any, cls: type = TrainingArguments, **options: Any) -> Any:
    """Three quick updates on a CPU, nothing saved."""
    defaults = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 3,
        "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True,
    }  # fmt: skip
    return cls(**{**defaults, **options})


def classifier(seed: int = 0) -> GPT2ForSequenceClassification:
    """A GPT-2 with one score and no idea what padding is."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": tiny.VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2ForSequenceClassification(GPT2Config(num_labels=1, **sizes, eos_token_id=tiny.EOS))


def lora(task: str = "CAUSAL_LM") -> Any:
    """A small adapter on the attention."""
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["c_attn"], task_type=task, fan_in_fan_out=True)


def moved(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    """Names of the parameters that are not what they were."""
    return {name for name, tensor in tiny.weights(model).items() if not torch.equal(tensor, before[name])}
