from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from transformers import HfArgumentParser

from trl_step import DPOConfig, ModelConfig, RewardConfig, RLOOConfig, ScriptArguments, SFTConfig
from trl_step.trainer.text.training_arguments import TrainingArguments


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"evaluation_strategy": "steps", "eval_steps": 2}, {"eval_strategy": "steps"}),
        ({"no_cuda": True}, {"use_cpu": True}),
        ({"per_gpu_train_batch_size": 3}, {"per_device_train_batch_size": 3}),
        ({"adafactor": True}, {"optim": "adafactor"}),
        ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"include_inputs_for_metrics": True}, {"include_for_metrics": ["inputs"]}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
    ],
)
def test_an_old_name_is_the_new_one(tmp_path: Path, old: dict, new: dict) -> None:
    with pytest.warns(FutureWarning, match=f"{next(iter(old))} is called {next(iter(new))}"):
        config = RewardConfig(output_dir=str(tmp_path), max_length=7, **old)
    assert {name: getattr(config, name) for name in new} == new
    assert config.max_length == 7


def test_warmup_ratio_and_what_release_5_dropped(tmp_path: Path) -> None:
    assert TrainingArguments(str(tmp_path), warmup_ratio=0.1, overwrite_output_dir=False).get_warmup_steps(100) == 10
    assert TrainingArguments(str(tmp_path), warmup_ratio=0.1, warmup_steps=3).get_warmup_steps(100) == 3
    assert TrainingArguments(str(tmp_path), split_batches=True).accelerator_config.split_batches
    assert TrainingArguments(str(tmp_path), dispatch_batches=False).accelerator_config.dispatch_batches is False
    with pytest.warns(FutureWarning, match="overwrite_output_dir has no effect"):
        TrainingArguments(str(tmp_path), overwrite_output_dir=True)


def test_both_names_of_one_setting_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="evaluation_strategy is the old name of eval_strategy"):
        RewardConfig(str(tmp_path), evaluation_strategy="no", eval_strategy="no")


def test_command_lines_of_either_release(tmp_path: Path) -> None:
    parser = HfArgumentParser((RewardConfig, ModelConfig, ScriptArguments))
    line = (
        f"--output_dir {tmp_path} --evaluation_strategy epoch --no_cuda --warmup_ratio 0.25 --max_length 9 "
        "--model_name_or_path here --torch_dtype bfloat16 --use_dora --lora_target_parameters a b --dataset_name there"
    )
    config, model, script = parser.parse_args_into_dataclasses(line.split())
    assert (config.eval_strategy, config.use_cpu, config.max_length) == ("epoch", True, 9)
    assert config.get_warmup_steps(100) == 25
    assert (model.dtype, model.torch_dtype, model.use_dora) == ("bfloat16", "bfloat16", True)
    assert model.lora_target_parameters == ["a", "b"]
    assert (script.dataset_name, script.dataset_train_split) == ("there", "train")


OLD_SETTINGS = """
output_dir: {folder}
evaluation_strategy: epoch
no_cuda: true
warmup_ratio: 0.25
group_by_length: true
overwrite_output_dir: true
max_length: 9
torch_dtype: bfloat16
use_bnb_nested_quant: true
dataset_name: there
dataset_split: test
"""


@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_files_with_old_names(tmp_path: Path, kind: str) -> None:
    parser = HfArgumentParser((RewardConfig, ModelConfig, ScriptArguments))
    path, text = tmp_path / f"settings.{kind}", OLD_SETTINGS.format(folder=tmp_path)
    path.write_text(text if kind == "yaml" else json.dumps(yaml.safe_load(text)))
    read = parser.parse_yaml_file if kind == "yaml" else parser.parse_json_file
    with pytest.warns(FutureWarning, match="evaluation_strategy is called eval_strategy"):
        config, model, script = read(path)
    assert (config.eval_strategy, config.use_cpu, config.max_length) == ("epoch", True, 9)
    assert config.get_warmup_steps(100) == 25
    assert config.train_sampling_strategy == "group_by_length"
    assert "evaluation_strategy" not in config.to_dict()
    assert (model.dtype, model.bnb_4bit_use_double_quant) == ("bfloat16", True)
    assert (script.dataset_name, script.dataset_train_split) == ("there", "test")


def test_old_names_are_no_second_settings(tmp_path: Path) -> None:
    from dataclasses import replace

    config = RewardConfig(str(tmp_path), max_length=7, eval_strategy="epoch")
    assert replace(config, eval_strategy="no").eval_strategy == "no"
    parser = HfArgumentParser((RewardConfig, ScriptArguments))
    line = f"--output_dir {tmp_path} --group_by_length --adafactor --dataset_split test --overwrite_output_dir"
    line += " --per_gpu_train_batch_size 3"
    config, script = parser.parse_args_into_dataclasses(line.split())
    assert config.per_device_train_batch_size == 3
    assert (config.optim, config.train_sampling_strategy) == ("adafactor", "group_by_length")
    assert script.dataset_train_split == "test"
    with pytest.raises(ValueError, match="dataset_split is the old name of dataset_train_split"):
        ScriptArguments(dataset_split="test", dataset_train_split="validation")


def test_a_dataclass_that_derives_from_a_configuration_is_one(tmp_path: Path) -> None:
    """Its constructor, which the decorator makes, sets attributes and never calls ours."""

    @dataclass
    class OwnSFT(SFTConfig):
        mine: int = 3

    @dataclass
    class OwnDPO(DPOConfig):
        mine: int = 3

    @dataclass
    class OwnRLOO(RLOOConfig):
        mine: int = 3

    with pytest.warns(FutureWarning, match="evaluation_strategy is called eval_strategy"):
        sft = OwnSFT(str(tmp_path), evaluation_strategy="epoch", warmup_ratio=0.1, max_seq_length=7, mine=4)
    assert (sft.eval_strategy, sft.get_warmup_steps(100), sft.mine) == ("epoch", 10, 4)
    assert sft.of_trainer()["max_seq_length"] == 7
    assert OwnDPO(str(tmp_path), max_completion_length=5).of_trainer()["max_target_length"] == 5
    with pytest.raises(ValueError, match="use_liger=True has no effect here"):
        OwnSFT(str(tmp_path), use_liger=True)
    with pytest.raises(ValueError, match="rloo_k"):
        OwnRLOO(str(tmp_path), rloo_k=1)
    parsed = HfArgumentParser(OwnSFT).parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--no_cuda"])[0]
    assert parsed.use_cpu
