"""`offload_reference`: the reference on the host, on a CPU whose host memory holds weights of the opposite sign.

So a pass that reads a weight from the host gives other numbers, as on a GPU it would fail.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny
from trl_step import PPOTrainer, create_reference_model
from trl_step.trainer.engine import models, offload


@pytest.fixture
def two_memories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "needs_no_copy", lambda device: False)
    monkeypatch.setattr(offload, "to_host", lambda weight: -weight.detach())
    monkeypatch.setattr(offload, "to_device", lambda host, device: -host)


def pair(name: str = "gpt2", **options: Any) -> PPOTrainer:
    """A policy and a reference that is another model; a reference of the trainer's own with `num_shared_layers`."""
    layers = options.pop("num_shared_layers", None)
    reference = None if layers else tiny.with_value_head(name, seed=5)
    return PPOTrainer(
        tiny.config(**options), tiny.with_value_head(name), reference, tiny.tokenizer(), num_shared_layers=layers
    )


class PlainPath(PPOTrainer):
    """Overrides a method of release 0.7: full logits."""

    def loss(self, *args: Any) -> Any:
        return super().loss(*args)


def scalars(stats: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in stats.items() if isinstance(value, float) and "time/" not in key}


@pytest.mark.usefixtures("two_memories")
@pytest.mark.parametrize(
    "options",
    [{}, {"kl_penalty": "full"}, {"num_shared_layers": 1}, {"name": "t5"}, {"forward_tokens": 16}],
    ids=str,
)
def test_a_step_is_the_same(options: dict[str, Any]) -> None:
    found = []
    for offloaded in (False, True):
        trainer = pair(offload_reference=offloaded, **options)
        stats = [scalars(trainer.step(*tiny.batch(seed=seed))) for seed in (1, 2)]
        found.append((stats, tiny.weights(trainer.model)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


@pytest.mark.usefixtures("two_memories")
def test_the_path_of_full_logits_and_answers_of_the_reference() -> None:
    found = []
    for offloaded in (False, True):
        reference = tiny.with_value_head("gpt2", seed=5)
        trainer = tiny.trainer(ref_model=reference, cls=PlainPath, offload_reference=offloaded)
        queries, *rest = tiny.batch()
        stats = scalars(trainer.step(queries, *rest))
        _, answers = trainer.generate(
            queries, return_prompt=False, generate_ref_response=True, do_sample=False, max_new_tokens=4
        )
        found.append((stats, [answer.tolist() for answer in answers]))
    assert found[0] == found[1]


@pytest.mark.usefixtures("two_memories")
def test_where_the_weights_are() -> None:
    trainer = pair(offload_reference=True, num_shared_layers=1)
    policy, reference = trainer.model.pretrained_model, trainer.ref_model.pretrained_model
    shared, own = reference.transformer.h[0].mlp.c_fc.weight, reference.transformer.h[1].mlp.c_fc.weight
    assert shared is policy.transformer.h[0].mlp.c_fc.weight, "what both share stays on the device"
    started = policy.transformer.h[1].mlp.c_fc.weight.detach().clone()
    host = own.data_ptr()
    assert torch.equal(own, -started)
    with trainer.optional_peft_ctx():
        assert torch.equal(own, started)
        with trainer.optional_peft_ctx():
            pass
        assert torch.equal(own, started), "the outer context has not ended"
    assert own.data_ptr() == host, "what was copied is dropped, and nothing is copied back"
    with pytest.raises(RuntimeError, match="in the pass"), trainer.optional_peft_ctx():
        raise RuntimeError("in the pass")
    assert own.data_ptr() == host


def test_on_a_cpu_nothing_is_copied() -> None:
    trainer = pair(offload_reference=True)
    weight = trainer.ref_model.pretrained_model.transformer.wte.weight
    place = weight.data_ptr()
    with trainer.optional_peft_ctx():
        assert weight.data_ptr() == place


@pytest.mark.usefixtures("two_memories")
def test_where_it_cannot_act() -> None:
    reference = create_reference_model(tiny.with_value_head("gpt2"))
    reference.is_sequential_parallel = True
    with pytest.raises(ValueError, match="offload_reference=True: the weights of the reference are sharded, quantized"):
        tiny.trainer(ref_model=reference, offload_reference=True)
    from peft import LoraConfig

    model = tiny.with_value_head("gpt2", peft_config=LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.warns(UserWarning, match="offload_reference has no effect: the reference is the policy"):
        tiny.trainer(model, offload_reference=True)
