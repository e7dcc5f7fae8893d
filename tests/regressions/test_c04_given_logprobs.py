"""C4: log-probs and values that the caller already has are not computed again, and give the same update."""

import copy

import numpy as np
import pytest
import torch

from tests import tiny
from trl_step.trainer.engine.engine import FusedEngine


def known(name):
    """What the models say about a batch, as lists with one number per predicted token."""
    trainer = tiny.trainer(name, tiny.with_value_head(name, seed=7))
    queries, responses, scores = tiny.batch()
    found = {}

    class Recorder(type(trainer)):
        def compute_rewards(self, scores, logprobs, ref_logprobs, masks):
            found.update(old_logprobs=logprobs, ref_logprobs=ref_logprobs, masks=masks.bool())
            return super().compute_rewards(scores, logprobs, ref_logprobs, masks)

        def compute_advantages(self, values, rewards, mask):
            found["values"] = values.clone()
            return super().compute_advantages(values, rewards, mask)

    recorder = Recorder(tiny.config(), copy.deepcopy(trainer.model), trainer.ref_model, tiny.tokenizer())
    np.random.seed(0)  # the order of the mini-batches
    stats = recorder.step(queries, responses, scores)
    np.random.seed(0)
    masks = found.pop("masks")
    given = {key: [row[mask] for row, mask in zip(table, masks, strict=True)] for key, table in found.items()}
    return trainer, (queries, responses, scores), given, stats, tiny.weights(recorder.model)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("left_out", [(), ("old_logprobs",), ("ref_logprobs",), ("values",)], ids=str)
def test_the_update_is_the_same(name, left_out):
    trainer, inputs, given, stats, weights = known(name)
    again = trainer.step(*inputs, **{key: value for key, value in given.items() if key not in left_out})
    scalars = [k for k, v in stats.items() if isinstance(v, float) and not k.startswith("time/")]
    assert {k: again[k] for k in scalars} == pytest.approx({k: stats[k] for k in scalars}, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(tiny.weights(trainer.model), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given_keys", "sweeps"),
    [
        ((), 2),
        (("old_logprobs",), 2),  # the values still have to come from somewhere
        (("old_logprobs", "values"), 1),
        (("ref_logprobs",), 1),
        (("old_logprobs", "values", "ref_logprobs"), 0),
    ],
)
def test_what_is_given_is_not_computed(given_keys, sweeps, monkeypatch):
    trainer, inputs, given, _, _ = known("gpt2")
    calls = []
    sweep = FusedEngine.sweep
    monkeypatch.setattr(FusedEngine, "sweep", lambda *args, **kwargs: calls.append(1) or sweep(*args, **kwargs))
    trainer.step(*inputs, **{key: given[key] for key in given_keys})
    assert len(calls) == sweeps


def test_another_behaviour_policy_shows_in_the_ratio():
    trainer, inputs, given, _, _ = known("gpt2")
    lower = [logprobs - 0.1 for logprobs in given["old_logprobs"]]
    trainer.config.ppo_epochs = 1
    trainer.config.mini_batch_size = trainer.config.backward_batch_size = 8
    stats = trainer.step(*inputs, old_logprobs=lower)
    assert stats["ppo/policy/policykl"] == pytest.approx(-0.1, abs=1e-5)
