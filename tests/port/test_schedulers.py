"""A scheduler of another optimizer has no effect, as of old, and is reported; of the trainer's own it has one."""

from __future__ import annotations

import pytest

from tests.port.test_run import run

SOURCE = """
import torch
from tests import tiny
from trl import PPOTrainer
model = tiny.with_value_head("gpt2")
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
class Own(PPOTrainer):
    def __init__(self, **named):
        PPOTrainer.__init__(self, config=tiny.config(learning_rate=1e-2), model=model, tokenizer=tiny.tokenizer(),
                            lr_scheduler=scheduler, **named)
trainer = Own(NAMED)
rates = [trainer.step(*tiny.batch())["ppo/learning_rate"] for _ in range(3)]
"""


@pytest.mark.parametrize(("named", "rates"), [("", [1e-2, 1e-2, 1e-2]), ("optimizer=optimizer", [1e-3, 5e-4, 2.5e-4])])
def test_the_learning_rate(named: str, rates: list[float]) -> None:
    told: list[str] = []
    names = run(SOURCE.replace("NAMED", named), told)
    assert names["rates"] == pytest.approx(rates)
    assert names["trainer"].lr_scheduler.get_last_lr()[0] == pytest.approx(1e-3 / 8)  # type: ignore[attr-defined]
    said = [line for line in told if "lr_scheduler" in line]
    assert len(said) == (not named)
