import pytest

from tests import tiny
from trl_step import create_reference_model
from trl_step.trainer.reports.cost import StepCost, step_flops

D, L, V = 32, 2, tiny.VOCABULARY
LENGTHS, RESPONSES = [10, 6], 7
TRUNK = sum(24 * L * D * D * s + 2 * L * D * s * s for s in LENGTHS)
HEAD = 2 * D * V * RESPONSES


def flops(model, **options):
    return step_flops(model.pretrained_model, LENGTHS, RESPONSES, epochs=4, reference_shares=False, **options)


def test_everything_trains():
    assert flops(tiny.with_value_head("gpt2")) == (2 + 3 * 4) * (TRUNK + HEAD)


def test_a_shared_bottom_runs_once():
    model = tiny.with_value_head("gpt2")
    create_reference_model(model, num_shared_layers=1)
    got = step_flops(model.pretrained_model, LENGTHS, RESPONSES, epochs=4, reference_shares=True, depth=1)
    assert got == pytest.approx(0.5 * TRUNK + (2 + 3 * 4) * 0.5 * TRUNK + (2 + 2 * 4) * HEAD)


def test_ratio_by_hand():
    cost = StepCost(flops=6e9, seconds=3.0, tokens=600, machine_flops_per_second=4e9)
    assert (cost.tokens_per_second, cost.limit_seconds, cost.ratio_to_limit) == (200.0, 1.5, 2.0)


def test_a_trainer_tells_of_its_last_step():
    trainer = tiny.trainer("gpt2")
    with pytest.raises(ValueError, match="call step first"):
        trainer.step_cost()
    stats = trainer.step(*tiny.batch())
    cost = trainer.step_cost()
    assert cost.seconds == stats["time/ppo/total"]
    assert cost.flops > 0
    assert cost.ratio_to_limit > 1


def test_early_stopping_costs_less():
    queries, responses, scores = tiny.batch()
    whole = tiny.trainer("gpt2")
    whole.step(queries, responses, scores)
    stopped = tiny.trainer("gpt2", early_stopping=True, target_kl=1e-9)
    stopped.step(queries, responses, scores)
    assert stopped.step_cost().flops < whole.step_cost().flops
