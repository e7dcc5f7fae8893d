import pytest
from transformers import GPT2Config, GPT2ForSequenceClassification

from tests import tiny
from trl_step import PPOTrainer, create_reference_model
from trl_step.trainer.reports.cost import StepCost, critic_flops, step_flops

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


def test_a_separate_critic_is_counted():
    model = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=V, n_embd=D, n_layer=L, n_head=2, n_positions=64, num_labels=1, **tiny.IDS)
    )
    assert critic_flops(model, LENGTHS, epochs=4) == (1 + 3 * 4) * TRUNK
    ours = PPOTrainer(tiny.config(), tiny.gpt2(), None, tiny.tokenizer(), value_model=model)
    alone = tiny.trainer("gpt2")
    for trainer in (ours, alone):
        trainer.step(*tiny.batch())
    lengths = [len(query) + len(response) for query, response in zip(*tiny.batch()[:2], strict=True)]
    assert ours.step_cost().flops == alone.step_cost().flops + critic_flops(model, lengths, epochs=4)


def test_a_query_that_runs_once_is_counted_once():
    query = 24 * L * D * D * 4 + 2 * L * D * 4 * 4
    assert flops(tiny.with_value_head("gpt2"), repeated=[4]) == (2 + 3 * 4) * (TRUNK - query + HEAD)
    queries, responses, scores = tiny.batch()
    queries[3] = queries[5] = queries[0]
    lengths = [len(query) + len(response) for query, response in zip(queries, responses, strict=True)]
    for share, repeated in ((True, 2 * [len(queries[0])]), (False, [])):
        trainer = tiny.trainer("gpt2", share_prompts=share)
        trainer.step(queries, responses, scores)
        model = trainer.model.pretrained_model
        expected = step_flops(model, lengths, sum(map(len, responses)), 4, False, repeated=repeated)
        assert trainer.step_cost().flops == expected


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
