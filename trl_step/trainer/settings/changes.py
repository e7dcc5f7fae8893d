"""Settings that a script changes while a run goes on: most act in the next step, some were read when it began."""

from __future__ import annotations

from typing import Any

from trl_step.models.notices import warn_user
from trl_step.trainer.settings.values import check_values

_RATES = "set the rates in trainer.optimizer.param_groups"
_CONTROLLER = "set trainer.kl_ctl"
_FIRST = "set it before the trainer is built"
READ_ONCE = {
    "learning_rate": _RATES,
    "value_learning_rate": _RATES,
    "init_kl_coef": "set trainer.kl_ctl.value",
    "adap_kl_ctrl": _CONTROLLER,
    "target": _CONTROLLER,
    "horizon": _CONTROLLER,
    "gradient_accumulation_steps": "set config.backward_batch_size, the samples of an update",
    **dict.fromkeys(
        (
            "seed", "temperature", "exact_v07", "forward_tokens", "share_prompts", "padding_free", "pad_max_len",
            "pad_for_acceleration", "gradient_checkpointing", "offload_reference",
        ),
        _FIRST,
    ),
}  # fmt: skip
"""Settings that a trainer reads when it is built, and what to do in place of changing them."""


class Changes:
    """What a script does to the settings of its trainer.

    Args:
        config: a `PPOConfig`, as the trainer was built with it
    """

    def __init__(self, config: Any) -> None:
        self._start = self._seen = dict(vars(config))

    def check(self, config: Any) -> None:
        """Warn of changes that have no effect.

        Raises:
            ValueError: a setting was changed to a value that it may not have.
        """
        now = dict(vars(config))
        if now == self._seen:
            return
        check_values(config)
        for name, advice in READ_ONCE.items():
            if now[name] != self._seen[name] and now[name] != self._start[name]:
                warn_user(
                    f"config.{name} was changed from {self._start[name]!r} to {now[name]!r}, but is read only when the "
                    f"trainer is built: {advice}"
                )
        self._seen = now
