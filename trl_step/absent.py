"""Layer 1: names of TRL's later releases that are not here, and what to use instead."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

_SAMPLED = "PPOTrainer, for which your own loop samples and scores several responses to each query"
_PAIRS = "DPOTrainer on pairs, with loss_type 'sigmoid', 'hinge', 'ipo' or 'kto_pair'"
_PAIRS_CONFIG = "DPOConfig, with DPOTrainer on pairs"
_JUDGED = "a function of your own that compares two responses, and its result as their scores for PPOTrainer.step"
_REWARD = "a function of your own from texts to scores, whose result goes to PPOTrainer.step"
_CHAT = "tokenizer.apply_chat_template of transformers"
_SCRIPT = "ScriptArguments, or a dataclass of your own"
INSTEAD = {
    "GRPOTrainer": f'{_SAMPLED}, with PPOConfig(advantage_estimator="grpo")',
    "GRPOConfig": 'PPOConfig(advantage_estimator="grpo"), with PPOTrainer',
    "GFPOTrainer": f'{_SAMPLED}, with PPOConfig(advantage_estimator="grpo")',
    "AsyncGRPOTrainer": f'{_SAMPLED}, with PPOConfig(advantage_estimator="grpo") and sampling_logprobs',
    "AsyncGRPOConfig": 'PPOConfig(advantage_estimator="grpo", importance_correction="tis"), with PPOTrainer',
    "OnlineDPOTrainer": f"{_SAMPLED}, each scored by comparison",
    "OnlineDPOConfig": "PPOConfig, with PPOTrainer",
    "NashMDTrainer": f"{_SAMPLED}, each scored by comparison",
    "NashMDConfig": "PPOConfig, with PPOTrainer",
    "XPOTrainer": f"{_SAMPLED}, each scored by comparison",
    "XPOConfig": "PPOConfig, with PPOTrainer",
    "KTOTrainer": _PAIRS,
    "KTOConfig": _PAIRS_CONFIG,
    "ORPOTrainer": _PAIRS,
    "ORPOConfig": _PAIRS_CONFIG,
    "CPOTrainer": _PAIRS,
    "CPOConfig": _PAIRS_CONFIG,
    "BCOTrainer": _PAIRS,
    "BCOConfig": _PAIRS_CONFIG,
    "AlignPropTrainer": "DDPOTrainer, which needs no gradient of the reward",
    "AlignPropConfig": "DDPOConfig, with DDPOTrainer",
    "PRMTrainer": "RewardTrainer, which scores whole texts",
    "PRMConfig": "RewardConfig, with RewardTrainer",
    "IterativeSFTConfig": "transformers.TrainingArguments, with IterativeSFTTrainer",
    **dict.fromkeys(("HfPairwiseJudge", "OpenAIPairwiseJudge", "PairRMJudge", "BaseJudge", "BasePairwiseJudge",
                     "BaseRankJudge", "BaseBinaryJudge", "AllTrueJudge", "RandomPairwiseJudge", "RandomRankJudge"),
                    _JUDGED),
    **dict.fromkeys(("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"), _REWARD),
    "get_soft_overlong_punishment": "trl_step.extras.LengthPenalty",
    **dict.fromkeys(("apply_chat_template", "maybe_apply_chat_template", "maybe_convert_to_chatml"), _CHAT),
    "clone_chat_template": "setup_chat_format, or tokenizer.chat_template of the other tokenizer",
    **dict.fromkeys(("pack_dataset", "pack_examples"), "SFTTrainer(packing=True), which packs by itself"),
    "truncate_dataset": "max_seq_length of SFTTrainer",
    "TrlParser": "transformers.HfArgumentParser, or tyro.cli",
    **dict.fromkeys(("SFTScriptArguments", "DPOScriptArguments", "RewardScriptArguments"), _SCRIPT),
    "LogCompletionsCallback": "PPOTrainer.on_step(SampleTable()), of trl_step.trainer.callbacks",
}  # fmt: skip
"""Name -> what to use instead."""
PACKAGES = ("trainer", "models", "environment", "extras", "sampling")
"""Those whose names are in their table `HOMES`, which imports nothing."""
MODULES = ("core", "import_utils")


def no_such_name(package: str, name: str) -> Exception:
    """The error for a name that `package`, which is `trl_step`, does not have.

    An ImportError if there is something to say: `from trl_step import name` shows the message of no other.
    """
    if name in INSTEAD:
        return ImportError(f"{package} has no {name}; use {INSTEAD[name]}", name=package)
    if home := _home_of(package, name):
        return ImportError(f"{package} has no {name}; it is in {home}: from {home} import {name}", name=package)
    return AttributeError(f"module {package!r} has no attribute {name!r}")


def _home_of(package: str, name: str) -> str:
    """The module below `package` that has the name; "" if none has."""
    for part in PACKAGES:
        homes = importlib.import_module(f"{package}.{part}").HOMES
        if any(name in names for names in homes.values()):
            return f"{package}.{part}"
    for part in MODULES:
        spec = find_spec(f"{package}.{part}")
        source = Path(str(spec and spec.origin)).read_text(encoding="utf-8")
        if re.search(rf"^(?:def|class) {re.escape(name)}\b", source, re.MULTILINE):
            return f"{package}.{part}"
    return ""
