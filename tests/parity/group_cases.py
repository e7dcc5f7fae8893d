"""The table of recorded group algorithms: name -> which inputs, which settings of the release. Plain Python."""

from __future__ import annotations

from typing import Any

Case = tuple[str, dict[str, Any]]
"""Name of the inputs, and settings under the names of the release; what is not named has the release's default."""

RLOO_CASES: dict[str, Case] = {
    "k2": ("rounds-of-2", {"token_level_kl": False}),
    "k2-token-level-kl": ("rounds-of-2", {"token_level_kl": True}),
    "k2-kl-coef": ("rounds-of-2", {"kl_coef": 0.3}),
    "k2-no-kl": ("rounds-of-2", {"kl_coef": 0.0}),
    "k2-cliprange": ("rounds-of-2", {"cliprange": 0.6}),
    "k2-normalize-reward": ("rounds-of-2", {"normalize_reward": True}),
    "k2-reward-clip-range": ("rounds-of-2", {"normalize_reward": True, "reward_clip_range": 0.7}),
    "k2-reward-clip-range-alone": ("rounds-of-2", {"reward_clip_range": 0.7}),
    "k2-normalize-advantage": ("rounds-of-2", {"normalize_advantage": True}),
    "k4": ("rounds-of-4", {"token_level_kl": False}),
    "k4-token-level-kl": ("rounds-of-4", {"token_level_kl": True, "kl_coef": 0.3}),
    "k4-normalize-reward": ("rounds-of-4", {"normalize_reward": True, "reward_clip_range": 1.0}),
    "k4-normalize-advantage": ("rounds-of-4", {"normalize_advantage": True}),
}


def _grpo_cases() -> dict[str, Case]:
    grpo: dict[str, Any] = {"loss_type": "grpo"}
    plain_kl = {"beta": 0.04, "use_bias_correction_kl": False}
    cases: dict[str, Case] = {}
    for scale in ("group", "batch", "none"):
        cases[f"scale-{scale}-pairs"] = ("pairs", {**grpo, "scale_rewards": scale})
        cases[f"scale-{scale}-fours"] = ("fours", {**grpo, "scale_rewards": scale})
    for loss in ("grpo", "dapo", "dr_grpo", "bnpo"):
        own = {"loss_type": loss}
        cases[loss] = ("pairs", own)
        cases[f"{loss}-epsilon-high"] = ("pairs", {**own, "epsilon_high": 0.28})
        cases[f"{loss}-beta"] = ("pairs", {**own, **plain_kl})
        cases[f"{loss}-on-policy"] = ("pairs", {**own, "num_iterations": 1})
        cases[f"{loss}-tool-mask"] = ("pairs", {**own, "tool_mask": True})
        cases[f"{loss}-truncated"] = ("pairs", {**own, "mask_truncated_completions": True})
        cases[f"{loss}-accumulation"] = ("fours", {**own, **plain_kl, "gradient_accumulation_steps": 4})
    windows = {"loss_type": "dapo", "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    cases["dapo-two-updates"] = ("fours", windows)
    cases["grpo-delta"] = ("pairs", {**grpo, "delta": 1.4})
    cases["grpo-beta-corrected"] = ("pairs", {**grpo, "beta": 0.04})
    cases["dapo-beta-corrected"] = ("pairs", {"loss_type": "dapo", "beta": 0.04})
    cases["grpo-entropy"] = ("pairs", {**grpo, "entropy_coef": 0.05})
    cases["dapo-entropy"] = ("pairs", {"loss_type": "dapo", "entropy_coef": 0.05})
    for name, settings in {
        "cispo": {},
        "cispo-0.28": {"epsilon_high": 0.28},
        "cispo-1.2": {"epsilon_high": 1.2},
        "cispo-5": {"epsilon_high": 5.0},
        "cispo-beta": {"epsilon_high": 1.2, **plain_kl},
        "cispo-tool-mask": {"epsilon_high": 1.2, "tool_mask": True},
    }.items():
        cases[name] = ("pairs", {"loss_type": "cispo", **settings})
    accumulated = {"epsilon_high": 1.2, "gradient_accumulation_steps": 4}
    cases["cispo-accumulation"] = ("fours", {"loss_type": "cispo", **accumulated})
    sequence = {**grpo, "importance_sampling_level": "sequence"}
    cases["gspo"] = ("pairs", {**sequence, "epsilon": 0.1, "epsilon_high": 0.15})
    cases["gspo-beta"] = ("pairs", {**sequence, "epsilon": 0.1, "epsilon_high": 0.15, **plain_kl})
    cases["sapo"] = ("pairs", {"loss_type": "sapo"})
    for mode, bounds in {
        "token_truncate": (None, 1.5),
        "token_mask": (0.6, 1.5),
        "sequence_truncate": (None, 1.5),
        "sequence_mask": (None, 1.5),
    }.items():
        correction = {"correction": mode, "clip_min": bounds[0], "clip_max": bounds[1]}
        cases[f"grpo-{mode}"] = ("pairs", {**grpo, **correction})
        cases[f"dapo-{mode}-beta"] = ("pairs", {"loss_type": "dapo", **correction, **plain_kl})
    cases["cispo-token_truncate"] = (
        "pairs",
        {"loss_type": "cispo", "epsilon_high": 1.2, "correction": "token_truncate", "clip_min": None, "clip_max": 1.5},
    )
    cases["grpo-sequence_mask-both"] = (
        "pairs",
        {**grpo, "correction": "sequence_mask", "clip_min": 0.5, "clip_max": 1.5},
    )
    cases["dapo-token_truncate-both"] = (
        "pairs",
        {"loss_type": "dapo", "correction": "token_truncate", "clip_min": 0.8, "clip_max": 1.5},
    )
    cases["dapo-token_mask-tool-mask"] = (
        "pairs",
        {"loss_type": "dapo", "correction": "token_mask", "clip_min": 0.6, "clip_max": 1.5, "tool_mask": True},
    )
    return cases


GRPO_CASES = _grpo_cases()
