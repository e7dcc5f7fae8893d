"""`SFTConfig` and `DPOConfig` of TRL 0.9 to 0.11."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import HfArgumentParser

from tests import tiny
from tests.trainer.text import text_tools
from tests.trainer.text.text_tools import words
from trl_step import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

SHORT: dict[str, Any] = {"use_cpu": True, "report_to": "none", "save_strategy": "no"}
TEXTS = Dataset.from_dict({"column": [words(6, seed) for seed in range(8)]})
PAIRS = Dataset.from_dict(
    {name: [words(4, seed + shift) for seed in range(4)] for shift, name in enumerate(("prompt", "chosen", "rejected"))}
)


def test_an_argument_of_the_trainer_wins_over_the_config(tmp_path: Path) -> None:
    config = SFTConfig(str(tmp_path), dataset_text_field="column", max_seq_length=4, **SHORT)
    made = {"model": tiny.gpt2(), "args": config, "train_dataset": TEXTS, "tokenizer": text_tools.tokenizer()}
    assert {len(row) for row in SFTTrainer(**made).train_dataset["input_ids"]} == {4}
    assert {len(row) for row in SFTTrainer(**made, max_seq_length=3).train_dataset["input_ids"]} == {3}
    assert {len(row) for row in SFTTrainer(tiny.gpt2(), config, None, TEXTS, None, text_tools.tokenizer())
            .train_dataset["input_ids"]} == {4}  # fmt: skip


def test_dpo_takes_its_settings(tmp_path: Path) -> None:
    config = DPOConfig(str(tmp_path), beta=0.3, loss_type="hinge", max_length=9, max_prompt_length=5, **SHORT)
    trainer = DPOTrainer(tiny.gpt2(), None, args=config, train_dataset=PAIRS, tokenizer=text_tools.tokenizer())
    assert (trainer.beta, trainer.loss_type, trainer.max_length, trainer.max_prompt_length) == (0.3, "hinge", 9, 5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SFTConfig, {"eval_packing": True}),
        (SFTConfig, {"use_liger": True}),
        (DPOConfig, {"rpo_alpha": 1.0}),
        (DPOConfig, {"sync_ref_model": True}),
        (DPOConfig, {"f_divergence_type": "js_divergence"}),
    ],
)
def test_what_has_no_effect_is_refused(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* has no effect here: "):
        kind(str(tmp_path), **options)


def test_command_lines(tmp_path: Path) -> None:
    line = f"--output_dir {tmp_path} --evaluation_strategy no --max_seq_length 7 --packing --dataset_text_field column"
    (config,) = HfArgumentParser(SFTConfig).parse_args_into_dataclasses(line.split())
    assert (config.max_seq_length, config.packing, config.dataset_text_field) == (7, True, "column")
    (config,) = HfArgumentParser(DPOConfig).parse_args_into_dataclasses(["--beta", "0.2", "--max_completion_length=3"])
    assert (config.beta, config.max_target_length) == (0.2, 3)


@pytest.mark.parametrize("named", [False, True])
def test_tokenized_rows_are_used_as_they_are(named: bool, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9]], "column": ["w5", "w6"]})
    options = {"dataset_text_field": "column", "dataset_kwargs": {"skip_prepare_dataset": True}} if named else {}
    config = SFTConfig(str(tmp_path), max_seq_length=8, max_steps=1, **options, **SHORT)
    trainer = SFTTrainer(tiny.gpt2(), config, train_dataset=rows, tokenizer=text_tools.tokenizer())
    assert trainer.train_dataset["input_ids"][:] == [[5, 6, 7], [8, 9]]
    trainer.train()
