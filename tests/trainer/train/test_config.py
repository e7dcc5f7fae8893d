"""Fields, defaults and refused values of `RLOOConfig`, `PPOv2Config` and `experimental.ppo.PPOConfig`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import HfArgumentParser

from tests import tiny
from tests.trainer.train import loops
from trl_step import PPOv2Config, RLOOConfig, RLOOTrainer
from trl_step.experimental.ppo import PPOConfig, PPOTrainer

SHARED = {
    "reward_model_path": "EleutherAI/pythia-160m", "sft_model_path": "EleutherAI/pythia-160m", "num_ppo_epochs": 4,
    "whiten_rewards": False, "kl_coef": 0.05, "cliprange": 0.2, "ds3_gather_for_generation": True,
    "dataset_num_proc": None, "num_mini_batches": 1, "total_episodes": None, "local_rollout_forward_batch_size": 64,
    "num_sample_generations": 10, "response_length": 53, "stop_token": None, "stop_token_id": None, "temperature": 0.7,
    "missing_eos_penalty": None, "num_total_batches": None, "micro_batch_size": None, "local_batch_size": None,
    "batch_size": None, "local_mini_batch_size": None, "mini_batch_size": None, "run_name": None, "push_to_hub": False,
}  # fmt: skip
OF_RLOO = {
    "rloo_k": 2, "normalize_reward": False, "reward_clip_range": 10.0, "normalize_advantage": False,
    "token_level_kl": False,
}  # fmt: skip
OF_PPO = {
    "vf_coef": 0.1, "cliprange_value": 0.2, "gamma": 1.0, "lam": 0.95, "kl_estimator": "k1",
    "model_adapter_name": None, "ref_adapter_name": None,
}  # fmt: skip
ALL = pytest.mark.parametrize("kind", [RLOOConfig, PPOv2Config, PPOConfig])


@ALL
def test_defaults_of_the_documents(kind: Any, tmp_path: Path) -> None:
    """The fields of TRL 0.15.2 and 0.26.2, read from the released packages."""
    config = kind(str(tmp_path))
    for name, value in (SHARED | (OF_RLOO if kind is RLOOConfig else OF_PPO)).items():
        assert getattr(config, name) == value, name


@ALL
def test_command_lines_and_old_names(kind: Any, tmp_path: Path) -> None:
    line = f"--output_dir {tmp_path} --learning_rate 3e-6 --num_ppo_epochs 1 --no_cuda --stop_token eos --exact"
    (config,) = HfArgumentParser(kind).parse_args_into_dataclasses(line.split())
    assert (config.learning_rate, config.num_ppo_epochs, config.use_cpu) == (3e-6, 1, True)
    assert (config.stop_token, config.exact) == ("eos", True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RLOOConfig, {"rloo_k": 1}),
        (RLOOConfig, {"reward_clip_range": 0.0}),
        (RLOOConfig, {"kl_coef": -0.1}),
        (RLOOConfig, {"temperature": 0.0}),
        (RLOOConfig, {"response_length": 0}),
        (RLOOConfig, {"num_ppo_epochs": 0}),
        (RLOOConfig, {"num_mini_batches": 0}),
        (RLOOConfig, {"per_device_train_batch_size": 0}),
        (RLOOConfig, {"total_episodes": 0}),
        (RLOOConfig, {"num_sample_generations": -1}),
        (RLOOConfig, {"stop_token": "end"}),
        (RLOOConfig, {"missing_eos_penalty": float("nan")}),
        (RLOOConfig, {"stop_token": "eos", "stop_token_id": 3}),
        (PPOv2Config, {"vf_coef": -1}),
        (PPOv2Config, {"gamma": 1.5}),
        (PPOv2Config, {"kl_estimator": "k2"}),
        (RLOOConfig, {"non_eos_penalty": True}),
        (RLOOConfig, {"sanity_check": True}),
    ],
)
def test_what_cannot_work_is_refused_by_name(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(str(tmp_path), **options)


def test_fields_of_the_first_releases_are_taken(tmp_path: Path) -> None:
    config = RLOOConfig(str(tmp_path), base_model="here", penalty_reward_value=-1, vf_coef=0.1, world_size=None)
    assert config.world_size == 1
    assert (config.sanity_check, config.non_eos_penalty) == (False, False), "the examples of 0.9 read them"
    assert not {"sanity_check", "non_eos_penalty"} & {field.name for field in fields(RLOOConfig)}


def test_exact_with_sizes_of_which_the_release_makes_one_update(tmp_path: Path) -> None:
    sizes = {"num_mini_batches": 2, "gradient_accumulation_steps": 2, "exact": True}
    with pytest.raises(ValueError, match="exact=True with num_mini_batches=2"):
        PPOConfig(str(tmp_path), **sizes)
    PPOv2Config(str(tmp_path), **sizes)


def test_wrong_arguments_of_the_trainers(tmp_path: Path) -> None:
    config = RLOOConfig(str(tmp_path), use_cpu=True, report_to="none")
    tokenizer, rows, model = tiny.tokenizer(), loops.prompts(), loops.policy()
    with pytest.raises(TypeError, match="config must be an RLOOConfig, got PPOConfig"):
        RLOOTrainer(PPOConfig(str(tmp_path)), tokenizer, model, None, len, rows)
    with pytest.raises(ValueError, match="reward_model is missing"):
        RLOOTrainer(config, tokenizer, model, None, None, rows)
    with pytest.raises(ValueError, match="reward_model must be a model for sequence classification or a function"):
        RLOOTrainer(config, tokenizer, model, None, "name", rows)
    wide = loops.classifier()
    wide.config.num_labels = 2
    with pytest.raises(ValueError, match=r"reward_model \(GPT2ForSequenceClassification\) has 2 labels"):
        RLOOTrainer(config, tokenizer, model, None, wide, rows)
    with pytest.raises(ValueError, match=r"train_dataset has the columns \['text'\], but not input_ids"):
        RLOOTrainer(config, tokenizer, model, None, len, Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="the reference is the policy itself"):
        RLOOTrainer(config, tokenizer, model, model, len, rows)
    other = PPOConfig(str(tmp_path), ref_adapter_name="other")
    with pytest.raises(ValueError, match="ref_adapter_name='other' is no adapter of the policy"):
        PPOTrainer(other, tokenizer, model, None, len, rows)


def test_the_older_names_of_the_arguments(tmp_path: Path) -> None:
    config = RLOOConfig(str(tmp_path), **loops.SHORT)
    trainer = RLOOTrainer(
        config=config, tokenizer=tiny.tokenizer(), policy=loops.policy(), ref_policy=None,
        reward_model=loops.different_words, train_dataset=loops.prompts(),
    )  # fmt: skip
    assert trainer.tokenizer is trainer.processing_class
