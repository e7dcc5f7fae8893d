"""Layer 1: names of TRL's later releases that are not here, and what to use instead."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path

_SAMPLED = "PPOTrainer, for which your own loop samples and scores several responses to each query"
_COMPARED = f"{_SAMPLED}, each scored by comparison"
_PAIRS = "DPOTrainer on pairs, with loss_type 'sigmoid', 'hinge', 'ipo' or 'kto_pair'"
_GROUPS = (
    (("GRPOTrainer", "GRPOConfig"), f'{_SAMPLED}, with PPOConfig(advantage_estimator="grpo")', "1.16", "trl"),
    (("KTOTrainer", "KTOConfig"), _PAIRS, "1.16", "trl"),
    (("ORPOTrainer", "ORPOConfig"), _PAIRS, "1.16", "trl.experimental.orpo"),
    (("CPOTrainer", "CPOConfig"), _PAIRS, "1.16", "trl.experimental.cpo"),
    (("BCOTrainer", "BCOConfig"), _PAIRS, "1.12", "trl.experimental.bco"),
    (("OnlineDPOTrainer", "OnlineDPOConfig"), _COMPARED, "1.16", "trl.experimental.online_dpo"),
    (("NashMDTrainer", "NashMDConfig"), _COMPARED, "1.12", "trl.experimental.nash_md"),
    (("XPOTrainer", "XPOConfig"), _COMPARED, "1.12", "trl.experimental.xpo"),
    (("GKDTrainer", "GKDConfig"), "SFTTrainer on answers of the teacher", "1.16", "trl.experimental.gkd"),
    (("AlignPropTrainer", "AlignPropConfig"), "DDPOTrainer, which needs no gradient of the reward", "0.17", "trl"),
    (("BaseJudge", "BasePairwiseJudge", "BaseRankJudge", "HfPairwiseJudge", "OpenAIPairwiseJudge", "PairRMJudge",
      "RandomPairwiseJudge", "RandomRankJudge"), "a function of your own that compares answers", "0.24", "trl"),
    (("WinRateCallback",), "a TrainerCallback of your own that samples and compares", "0.24", "trl"),
    (("LogCompletionsCallback",), "generate_during_eval of DPOConfig or num_sample_generations", "1.16", "trl"),
    (("SyncRefModelCallback",), "DPOTrainer with a reference that does not move", "1.16", "trl"),
    (("FDivergenceType", "FDivergenceConstants"), 'f_divergence_type="reverse_kl" of DPOConfig, the only one', "0.24",
     "trl"),
)  # fmt: skip
"""Names, what to use instead, and a release of TRL with its module that has them."""
_OTHERS = (
    (("GFPOTrainer",), f'{_SAMPLED}, with PPOConfig(advantage_estimator="grpo")'),
    (("AsyncGRPOTrainer", "AsyncGRPOConfig"), f'{_SAMPLED}, with sampling_logprobs and PPOConfig(advantage_estimator='
     '"grpo", importance_correction="tis")'),
    (("PRMTrainer", "PRMConfig"), "RewardTrainer, which scores whole texts"),
    (("IterativeSFTConfig",), "transformers.TrainingArguments, with IterativeSFTTrainer"),
    (("BaseBinaryJudge", "AllTrueJudge"), "a function of your own that scores answers"),
    (("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"),
     "a function of your own from texts to scores, whose result goes to PPOTrainer.step"),
    (("get_soft_overlong_punishment",), "trl_step.extras.LengthPenalty"),
    (("clone_chat_template",), "setup_chat_format, or tokenizer.chat_template of the other tokenizer"),
    (("pack_dataset", "pack_examples"), "SFTTrainer(packing=True), which packs by itself"),
    (("truncate_dataset",), "max_seq_length of SFTTrainer"),
    (("RewardScriptArguments",), "a dataclass of your own"),
)  # fmt: skip
"""Names of TRL after 0.11, and what to use instead."""
INSTEAD = {
    **{name: f"{instead}; TRL {release} has it in {module}" for names, instead, release, module in _GROUPS
       for name in names},
    **{name: instead for names, instead in _OTHERS for name in names},
}  # fmt: skip
"""Name -> what to use instead, and where the thing itself is."""
PACKAGES = ("trainer", "models", "environment", "extras", "sampling")
"""Those whose names are in their table `HOMES`, which imports nothing."""
MODULES = ("core", "import_utils", "commands.cli_utils", "port.data_utils")


def names_of_module(module: str) -> list[str]:
    """The absent names that a module of TRL had: "trl.trainer.kto_trainer" -> ["KTOTrainer"]."""
    last = module.rpartition(".")[2].replace("_", "")
    return [name for name in INSTEAD if last in (name.lower(), name.lower().removesuffix("trainer"))]


def no_such_module(module: str) -> str:
    """What to say about a module of trl_step that is not there."""
    advice = "".join(f"; instead of {name} use {INSTEAD[name]}" for name in names_of_module(module))
    return f"there is no module {module}{advice}"


def no_such_attribute(package: str, name: str) -> Exception:
    """The error that `__getattr__` of `package` raises for a name it does not have.

    `from package import name` shows the message of an ImportError alone; `hasattr` expects an AttributeError.
    """
    error = no_such_name(package, name)
    return error if _is_imported() else AttributeError(str(error))


def _is_imported() -> bool:
    """Whether the import system asks for an attribute of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("trl_step"):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "").startswith("importlib.")


def no_such_name(package: str, name: str) -> Exception:
    """The error for a name that `package`, which is `trl_step` or in it, does not have: an ImportError if there is
    something to say, else an AttributeError."""
    if name in INSTEAD:
        return ImportError(f"{package} has no {name}; use {INSTEAD[name]}", name=package)
    if not name.startswith("_") and (home := _home_of(package, name)):
        return ImportError(f"{package} has no {name}; it is in {home}: from {home} import {name}", name=package)
    return AttributeError(f"module {package!r} has no attribute {name!r}")


def _home_of(package: str, name: str) -> str:
    """The module of trl_step that has the name which `package` does not have; "" if none has."""
    root = package.partition(".")[0]
    for part in PACKAGES:
        homes = importlib.import_module(f"{root}.{part}").HOMES
        if any(name in names for names in homes.values()):
            return f"{root}.{part}"
    for part in MODULES:
        spec = find_spec(f"{root}.{part}")
        source = Path(str(spec and spec.origin)).read_text(encoding="utf-8")
        if re.search(rf"^(?:def|class) {re.escape(name)}\b", source, re.MULTILINE):
            return f"{root}.{part}"
    return ""
