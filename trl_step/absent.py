"""Layer 1: names of TRL's later releases that are not here, and what to use instead."""

from __future__ import annotations

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
INSTEAD = {
    name: f"{instead}; TRL {release} has it in {module}"
    for names, instead, release, module in _GROUPS
    for name in names
}
"""Name -> what to use instead, and where the thing itself is."""


def names_of_module(module: str) -> list[str]:
    """The absent names that a module of TRL had: "trl.trainer.kto_trainer" -> ["KTOTrainer"]."""
    last = module.rpartition(".")[2].replace("_", "")
    return [name for name in INSTEAD if last in (name.lower(), name.lower().removesuffix("trainer"))]


def no_such_module(module: str) -> str:
    """What to say about a module of trl_step that is not there."""
    advice = "".join(f"; instead of {name} use {INSTEAD[name]}" for name in names_of_module(module))
    return f"there is no module {module}{advice}"


def no_such_name(package: str, name: str) -> Exception:
    """The error for a name that `package`, which is `trl_step`, does not have.

    An ImportError if there is something to say: `from trl_step import name` shows the message of no other.
    """
    if name in INSTEAD:
        return ImportError(f"{package} has no {name}; use {INSTEAD[name]}", name=package)
    return AttributeError(f"module {package!r} has no attribute {name!r}")
