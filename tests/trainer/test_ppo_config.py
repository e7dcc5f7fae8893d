"""`PPOConfig`: defaults, three ways to make one, and messages that name the field, the value and what is allowed."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from transformers import HfArgumentParser

from trl_step import PPOConfig

DEFAULTS_OF_V0_7_11: dict[str, Any] = {
    "seed": 0, "log_with": None, "task_name": None, "model_name": "gpt2", "query_dataset": "imdb",
    "reward_model": "sentiment-analysis:lvwerra/distilbert-imdb", "remove_unused_columns": True, "tracker_kwargs": {},
    "accelerator_kwargs": {}, "project_kwargs": {}, "tracker_project_name": "trl", "push_to_hub_if_best_kwargs": {},
    "steps": 20000, "learning_rate": 1.41e-05, "adap_kl_ctrl": True, "init_kl_coef": 0.2, "kl_penalty": "kl",
    "target": 6, "horizon": 10000, "gamma": 1, "lam": 0.95, "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1,
    "batch_size": 128, "forward_batch_size": None, "mini_batch_size": 128, "gradient_accumulation_steps": 1,
    "world_size": None, "ppo_epochs": 4, "max_grad_norm": None, "optimize_cuda_cache": None,
    "optimize_device_cache": False, "early_stopping": False, "target_kl": 1, "compare_steps": 1,
    "ratio_threshold": 10.0, "use_score_scaling": False, "use_score_norm": False, "score_clip": None,
    "whiten_rewards": False, "is_encoder_decoder": None, "is_peft_model": None, "backward_batch_size": 128,
    "global_backward_batch_size": None, "global_batch_size": None,
}  # fmt: skip
OF_V0_11_4 = {"gradient_checkpointing": False, "dataset_num_proc": None}
NEW = {
    "exact_v07": False, "loss_normalization": "mini_batch", "temperature": 1.0, "pad_for_acceleration": False,
    "pad_max_len": None, "use_habana": False,
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), (DEFAULTS_OF_V0_7_11 | OF_V0_11_4 | NEW).items())
def test_defaults(name: str, value: Any) -> None:
    assert getattr(PPOConfig(), name) == value
    assert type(dataclasses.asdict(PPOConfig())[name]) is type(value) or isinstance(value, float)


def test_computed_values() -> None:
    config = PPOConfig(batch_size=24, mini_batch_size=4, gradient_accumulation_steps=3, steps=100)
    assert config.backward_batch_size == 12
    assert config.total_ppo_epochs == 5
    assert PPOConfig().total_ppo_epochs == 157  # as in v0.7.11


def test_the_name_of_the_experiment_is_that_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/my_run.py", "--steps", "10"])
    assert PPOConfig().exp_name == "my_run"


def test_two_configs_share_no_dictionary() -> None:
    one, two = PPOConfig(), PPOConfig()
    one.accelerator_kwargs["cpu"] = True
    assert two.accelerator_kwargs == {}


# --- the three ways --------------------------------------------------------------------------------------------

ARGUMENTS = {
    "learning_rate": 3e-5, "batch_size": 16, "mini_batch_size": 4, "kl_penalty": "full", "seed": 7,
    "log_with": "tensorboard", "early_stopping": True, "adap_kl_ctrl": False, "score_clip": 2.5, "temperature": 0.7,
    "loss_normalization": "tokens", "tracker_kwargs": {"wandb": {"entity": "me"}}, "model_name": "mine",
}  # fmt: skip


def by_tyro() -> PPOConfig:
    words: list[str] = []
    for name, value in ARGUMENTS.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return tyro.cli(PPOConfig, args=words)


def by_hf_parser() -> PPOConfig:
    words = [
        word
        for name, value in ARGUMENTS.items()
        for word in (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    ]
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(words)
    return config


@pytest.mark.parametrize("make", [lambda: PPOConfig(**ARGUMENTS), by_tyro, by_hf_parser], ids=["hand", "tyro", "hf"])
def test_it_can_be_made_by_hand_by_tyro_and_by_the_hf_parser(make: Any) -> None:
    config = make()
    for name, value in ARGUMENTS.items():
        assert getattr(config, name) == value, name


def test_nothing_is_given_on_the_command_line() -> None:
    plain = dataclasses.asdict(PPOConfig())
    assert dataclasses.asdict(tyro.cli(PPOConfig, args=[])) == plain
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses([])
    assert dataclasses.asdict(config) == plain


def test_a_dictionary_may_be_given_as_json() -> None:
    assert PPOConfig(project_kwargs='{"logging_dir": "runs"}').project_kwargs == {"logging_dir": "runs"}
    for wrong in ("{", "[1]", 3, ["a"]):
        with pytest.raises(ValueError, match=r"project_kwargs=.*JSON object"):
            PPOConfig(project_kwargs=wrong)


def test_a_list_of_trackers() -> None:
    assert PPOConfig(log_with=["tensorboard", "wandb"]).trackers == ["tensorboard", "wandb"]


# --- wrong values ----------------------------------------------------------------------------------------------

nan, inf = float("nan"), float("inf")
WRONG: list[tuple[str, Any, str]] = [
    *(("learning_rate", value, "a finite number >= 0") for value in (-1e-5, nan, inf, "1e-5", None)),
    *(("batch_size", value, "a finite number >= 1") for value in (0, -8)),
    *(("batch_size", value, "a whole number") for value in (8.0, "8", True)),
    ("mini_batch_size", 0, "a finite number >= 1"),
    ("gradient_accumulation_steps", 0, "a finite number >= 1"),
    ("ppo_epochs", 0, "a finite number >= 1"),
    ("steps", 0, "a finite number >= 1"),
    ("compare_steps", 0, "a finite number >= 1"),
    *(("gamma", value, "a finite number >= 0 and <= 1") for value in (-0.1, 1.1, nan)),
    ("lam", 2, "a finite number >= 0 and <= 1"),
    ("cliprange", -0.2, "a finite number >= 0"),
    ("cliprange_value", nan, "a finite number >= 0"),
    ("vf_coef", -1, "a finite number >= 0"),
    ("init_kl_coef", -0.1, "a finite number >= 0"),
    *(("target", value, "a finite number > 0") for value in (0, -6, None)),
    ("horizon", 0, "a finite number > 0"),
    ("max_grad_norm", 0, "a finite number > 0"),
    ("target_kl", 0, "a finite number > 0"),
    ("ratio_threshold", 0, "a finite number > 0"),
    ("score_clip", -1.0, "a finite number > 0"),
    *(("temperature", value, "a finite number > 0") for value in (0, -1, nan)),
    ("pad_max_len", 1, "a finite number >= 2"),
    ("early_stopping", 1, "True or False"),
    ("use_score_norm", "yes", "True or False"),
    ("kl_penalty", "kl2", "one of 'kl', 'abs', 'mse', 'full'"),
    ("loss_normalization", "token", "one of 'mini_batch', 'tokens'"),
    (
        "log_with",
        "wandbd",
        "None or one of wandb, tensorboard, trackio, mlflow, comet_ml, aim, swanlab",
    ),
    *(("seed", value, "None or a whole number from 0") for value in (-1, 2**32, 0.5, True)),
    ("optimize_device_cache", "no", "one of None, True, False"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        PPOConfig(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r} ")
    assert allowed in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 10, "mini_batch_size": 4},
            r"batch_size=10 must be a multiple of mini_batch_size \* gradient_accumulation_steps = 4 \* 1 = 4",
        ),
        ({"batch_size": 8, "mini_batch_size": 4, "gradient_accumulation_steps": 4}, r"4 \* 4 = 16"),
        ({"pad_for_acceleration": True}, "pad_for_acceleration=True needs pad_max_len"),
        ({"padding_free": True, "exact_v07": True}, "padding_free=True with exact_v07=True: .* leave one out"),
        (
            {"padding_free": True, "pad_for_acceleration": True, "pad_max_len": 8},
            "padding_free=True with pad_for_acceleration=True",
        ),
        (
            {"push_to_hub_if_best_kwargs": {"private": True}},
            "push_to_hub_if_best_kwargs must contain the key 'repo_id'",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**options)


@pytest.mark.parametrize(
    ("options", "mini_batch_size"),
    [
        ({"batch_size": 8}, 8),
        ({"batch_size": 1}, 1),
        ({"batch_size": 256}, 128),
        ({"batch_size": 8, "gradient_accumulation_steps": 2}, 4),
        ({"batch_size": 2048, "gradient_accumulation_steps": 4}, 128),
        ({}, 128),
    ],
)
def test_the_default_mini_batch_is_no_larger_than_the_batch(options: dict[str, int], mini_batch_size: int) -> None:
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    for config in (
        PPOConfig(**options),
        tyro.cli(PPOConfig, args=[word.replace("_", "-") for word in words]),
        *HfArgumentParser(PPOConfig).parse_args_into_dataclasses(words),
    ):
        assert config.mini_batch_size == mini_batch_size
        assert config.backward_batch_size == mini_batch_size * config.gradient_accumulation_steps
        assert type(config.batch_size) is int


@pytest.mark.parametrize(
    ("options", "changes", "mini_batch_size"),
    [
        ({"batch_size": 8}, {"batch_size": 16}, 16),
        ({}, {"batch_size": 8}, 8),
        ({"batch_size": 8}, {"batch_size": 512}, 128),
        ({"batch_size": 8}, {"gradient_accumulation_steps": 2}, 4),
        ({"batch_size": 8}, {"learning_rate": 0.1}, 8),
        ({"batch_size": 8}, {"batch_size": 16, "mini_batch_size": 2}, 2),
        ({"batch_size": 8, "mini_batch_size": 8}, {"batch_size": 16}, 8),
    ],
)
def test_a_replaced_batch_size_takes_the_default_mini_batch_anew(
    options: dict[str, int], changes: dict[str, Any], mini_batch_size: int
) -> None:
    config = dataclasses.replace(PPOConfig(**options), **changes)
    config = dataclasses.replace(config, gamma=0.5)
    assert config.mini_batch_size == mini_batch_size
    assert config.backward_batch_size == mini_batch_size * config.gradient_accumulation_steps


def test_a_default_mini_batch_is_a_plain_number_in_copies_and_files() -> None:
    config = PPOConfig(batch_size=8)
    again = pickle.loads(pickle.dumps(config))
    for size in (
        dataclasses.asdict(config)["mini_batch_size"], config.to_dict()["mini_batch_size"], again.mini_batch_size,
    ):  # fmt: skip
        assert (type(size), size) == (int, 8)
    assert "mini_batch_size=8," in repr(config)
    assert json.dumps(config.mini_batch_size) == "8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mini_batch_size": 48}, r"batch_size=128 \(the default\) must .* = 48 \* 1 = 48$"),
        ({"batch_size": 200}, r"batch_size=200 must .* = 128 \(the default\) \* 1 = 128$"),
        ({"batch_size": 8, "mini_batch_size": 128}, r"batch_size=8 must .* = 128 \* 1 = 128$"),
    ],
)
def test_an_error_says_which_size_is_a_default(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOConfig(**options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0), ("gamma", 0), ("lam", 1), ("max_grad_norm", None), ("score_clip", 1), ("seed", None),
        ("seed", 2**32 - 1), ("init_kl_coef", 0.0), ("temperature", 2), ("vf_coef", 0), ("cliprange", 0.0),
    ],
)  # fmt: skip
def test_values_at_the_edge_are_allowed(name: str, value: Any) -> None:
    assert getattr(PPOConfig(**{name: value}), name) == value


def test_a_fixed_coefficient_needs_no_target() -> None:
    assert PPOConfig(adap_kl_ctrl=False, target=None, horizon=None).target is None


def test_deprecated_names_warn_and_work() -> None:
    with pytest.warns(FutureWarning, match="forward_batch_size is deprecated .* mini_batch_size"):
        assert PPOConfig(batch_size=8, forward_batch_size=4).mini_batch_size == 4
    with pytest.warns(FutureWarning, match="optimize_cuda_cache is deprecated; set optimize_device_cache"):
        assert PPOConfig(optimize_cuda_cache=True).optimize_device_cache is True


def test_habana_without_its_package_is_an_error() -> None:
    with pytest.raises(ImportError, match="needs the package habana_frameworks: pip install"):
        PPOConfig(use_habana=True)


def test_as_one_flat_dictionary() -> None:
    flat = PPOConfig(tracker_kwargs={"wandb": {"entity": "me"}}).to_dict()
    assert flat["tracker_kwargs/wandb/entity"] == "me"
    assert flat["total_ppo_epochs"] == 157
    assert set(DEFAULTS_OF_V0_7_11) - {"tracker_kwargs"} <= set(flat) | {
        "accelerator_kwargs", "project_kwargs", "push_to_hub_if_best_kwargs",
    }  # fmt: skip


# --- other algorithms ------------------------------------------------------------------------------------------------

NOT_OF_V07: dict[str, Any] = {
    "advantage_estimator": "grpo", "group_scale": "none", "whiten_advantages": False, "policy_loss": "cispo",
    "cliprange_high": 0.3, "dual_clip": 3.0, "cispo_bound": 4.0, "sapo_temperatures": (1.0, 2.0), "dppo_delta": 0.1,
    "loss_normalization": "tokens", "loss_constant_length": 8, "kl_in": "loss", "kl_penalty": "k3",
    "entropy_coef": 0.01, "importance_correction": "tis", "importance_bounds": (0.0, 2.0), "value_learning_rate": 1e-5,
    "value_warmup_steps": 1, "value_lam": 1.0, "length_adaptive_alpha": 0.05, "gae_level": "turn",
    "positive_nll_coef": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_OF_V07)
def test_what_release_07_does_not_have_is_refused_with_its_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=.* with exact_v07=True"):
        PPOConfig(exact_v07=True, **{name: NOT_OF_V07[name]})


def test_the_defaults_of_the_algorithm_are_those_of_release_07() -> None:
    config = PPOConfig()
    assert (config.advantage_estimator, config.policy_loss, config.kl_in) == ("gae", "clip", "reward")
    assert config.needs_values
    assert config.whitens
    assert not PPOConfig(advantage_estimator="grpo").whitens
    assert PPOConfig(advantage_estimator="reinforce_plus_plus").whitens
    assert PPOConfig(advantage_estimator="rloo", whiten_advantages=True).whitens
    assert not PPOConfig(whiten_advantages=False).whitens


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"group_scale": "none"}, "group_scale='none' acts only with advantage_estimator='grpo'"),
        ({"cispo_bound": 3.0}, "cispo_bound=3.0 acts only with policy_loss='cispo', but policy_loss is 'clip'"),
        ({"dual_clip": 3.0, "policy_loss": "sapo"}, "dual_clip=3.0 acts only with policy_loss='clip' or 'gspo'"),
        ({"importance_bounds": (0, 2)}, "importance_bounds=.* acts only with importance_correction='tis' or"),
        ({"value_lam": 1.0, "advantage_estimator": "rloo"}, "value_lam=1.0 acts only with advantage_estimator='gae'"),
        ({"loss_constant_length": 9}, "loss_constant_length=9 acts only with loss_normalization='constant'"),
        ({"loss_normalization": "constant"}, 'loss_normalization="constant" needs loss_constant_length'),
        ({"kl_in": "loss", "kl_penalty": "full"}, 'kl_penalty="full" with kl_in="loss"'),
        ({"advantage_estimator": "reinforce"}, "advantage_estimator='reinforce' must be one of 'gae', 'grpo'"),
        ({"policy_loss": "ppo"}, "policy_loss='ppo' must be one of 'clip', 'gspo'"),
        ({"whiten_advantages": "no"}, "whiten_advantages='no' must be one of None, True, False"),
        ({"dual_clip": 1.0}, "dual_clip=1.0 must be a finite number > 1"),
        ({"importance_correction": "tis", "importance_bounds": (2, 1)}, "must be .low, high. with 0 <= low <= high"),
        ({"importance_correction": "tis", "importance_bounds": 2.0}, "importance_bounds=2.0 must be two numbers"),
        ({"policy_loss": "sapo", "sapo_temperatures": (0.0, 1.0)}, "must be two finite numbers above 0"),
        ({"value_warmup_steps": 1.5}, "value_warmup_steps=1.5 must be a whole number"),
        ({"pad_max_len": 64}, "pad_max_len=64 acts only with pad_for_acceleration=True"),
    ],
    ids=str,
)
def test_settings_that_cannot_act_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PPOConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kl_in": "loss"}, "the gradient of logprob - ref_logprob is 0 on average"),
        ({"policy_loss": "gspo"}, "cliprange=3e-4, cliprange_high=4e-4"),
        ({"policy_loss": "cispo", "cliprange": 0.1}, "cliprange=0.1 has no effect with policy_loss='cispo'"),
        ({"advantage_estimator": "grpo", "gamma": 0.9}, "gamma=0.9 has no effect with advantage_estimator='grpo'"),
        ({"advantage_estimator": "remax", "lam": 0.9}, "lam=0.9 has no effect with advantage_estimator='remax'"),
        ({"advantage_estimator": "rloo", "vf_coef": 0.5}, "vf_coef=0.5 has no effect .*; it acts with 'gae'"),
        ({"adap_kl_ctrl": False, "target": 1.0}, "target=1.0 has no effect with adap_kl_ctrl=False"),
        ({"adap_kl_ctrl": False, "horizon": 50}, "horizon=50 has no effect with adap_kl_ctrl=False"),
        ({"init_kl_coef": 0.0, "target": 1.0}, "target=1 has no effect with init_kl_coef=0: .* 0 stays 0"),
        ({"keep_last": 2}, "keep_last=2 has no effect without save_every"),
        ({"vf_coef": 0}, "vf_coef=0: the values never train, and advantages are made of them"),
    ],
)
def test_settings_that_hardly_act_are_said(settings: dict[str, Any], told: str) -> None:
    with pytest.warns(UserWarning, match=told):
        PPOConfig(**settings)


def test_numbers_of_numpy_and_torch_are_taken_as_python_has_them() -> None:
    config = PPOConfig(batch_size=np.int64(8), mini_batch_size=torch.tensor(4), learning_rate=np.float32(0.5))
    assert [type(each) for each in (config.batch_size, config.mini_batch_size, config.learning_rate)] == [
        int,
        int,
        float,
    ]
    assert (config.batch_size, config.mini_batch_size, config.learning_rate) == (8, 4, 0.5)
    with pytest.raises(ValueError, match=r"batch_size=8\.0 must be a whole number"):
        PPOConfig(batch_size=np.float32(8))


def test_a_number_that_yaml_takes_for_text_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text("batch_size: 8\nlearning_rate: 1e-5\n")
    with pytest.raises(ValueError, match="learning_rate='1e-5' must be a finite number >= 0; this is text: YAML takes"):
        HfArgumentParser(PPOConfig).parse_yaml_file(str(path))
    path.write_text("batch_size: 8\nlearning_rate: 1.0e-5\n")
    assert HfArgumentParser(PPOConfig).parse_yaml_file(str(path))[0].learning_rate == 1e-5


def test_pairs_come_from_command_lines_too() -> None:
    words = ["--importance_correction", "tis", "--policy_loss", "sapo"]
    found = tyro.cli(PPOConfig, args=[*words, "--importance_bounds", "0", "3", "--sapo_temperatures", "1", "2"])
    assert (found.importance_bounds, found.sapo_temperatures) == ((0.0, 3.0), (1.0, 2.0))
    parsed = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(
        [*words, "--importance_bounds", "0,3", "--sapo_temperatures", "1,2"]
    )
    assert (parsed[0].importance_bounds, parsed[0].sapo_temperatures) == ((0.0, 3.0), (1.0, 2.0))


def test_what_acts_is_not_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPOConfig(advantage_estimator="grpo", cliprange=0.1, kl_in="loss", kl_penalty="k3")
        PPOConfig(policy_loss="gspo", cliprange=3e-4, gamma=0.9, lam=0.9, vf_coef=0.5)
        PPOConfig(advantage_estimator="remax", policy_loss="reinforce", gamma=0.9)
        PPOConfig(adap_kl_ctrl=False, target=None, horizon=None)
        PPOConfig(init_kl_coef=0.0)
        PPOConfig(exact_v07=True, pad_for_acceleration=True, pad_max_len=64)
