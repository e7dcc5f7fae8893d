"""Row A4: gradient checkpointing works although dropout is off in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
import transformers
from peft import LoraConfig

from tests.tiny import WatchedUpdates, batch, config, tokenizer, trainer, weights, with_value_head


class Watcher(WatchedUpdates):
    """Keeps the ratio of the first mini-batch."""

    first: torch.Tensor | None = None

    def _update(self, loss: torch.Tensor, stats: dict[str, torch.Tensor], mask: torch.Tensor) -> Any:
        if self.first is None:
            self.first = stats["policy/ratio"]
        return super()._update(loss, stats, mask)


def build(name: str, checkpointing: bool) -> Any:
    lora = {"peft_config": LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True)} if name == "lora" else {}
    model = with_value_head("gpt2" if lora else name, dropout=0.5, **lora)
    settings = config(gradient_checkpointing=checkpointing, mini_batch_size=8, ppo_epochs=2)
    # not Adam: it makes whole steps out of the rounding of gradients that are 0
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return Watcher(settings, model, None, tokenizer(), optimizer=optimizer)


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """The most bytes that the autograd graph held at once, as a list of one number."""
    held, peak = 0, [0]

    class Packed:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal held
            self.tensor, self.size = tensor, tensor.untyped_storage().nbytes()
            held += self.size
            peak[0] = max(peak[0], held)

        def __del__(self) -> None:
            nonlocal held
            held -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Packed, lambda packed: packed.tensor):
        yield peak


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "lora"])
def test_layers_are_recomputed_and_the_first_ratio_is_1(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    plain = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(transformers.modeling_utils, "checkpoint", lambda *a, **k: (calls.append(a), plain(*a, **k))[1])
    kept, recomputed = build(name, checkpointing=False), build(name, checkpointing=True)
    with peak_bytes() as without:
        kept.step(*batch())
    assert calls == []
    with peak_bytes() as with_checkpointing:
        recomputed.step(*batch())
    layers = 2 if name not in ("t5", "bart") else 4
    assert len(calls) == 2 * layers  # 2 epochs of one mini-batch; nothing is recomputed where no gradient is wanted
    assert with_checkpointing[0] < 0.8 * without[0]
    assert float((recomputed.first - 1).abs().max()) < 2e-6
    for parameter, value in weights(kept.model).items():
        torch.testing.assert_close(weights(recomputed.model)[parameter], value, rtol=0, atol=1e-6)


def test_it_may_be_switched_on_at_the_model() -> None:
    model = with_value_head("gpt2")
    model.gradient_checkpointing_enable()
    calls: list[Any] = []
    for block in model.pretrained_model.transformer.h:
        plain = block._gradient_checkpointing_func
        block._gradient_checkpointing_func = lambda *a, plain=plain, **k: (calls.append(a), plain(*a, **k))[1]
    modes = [module.training for module in model.modules()]
    trainer(model, mini_batch_size=8, ppo_epochs=1).step(*batch())
    assert len(calls) == 2
    assert [module.training for module in model.modules()] == modes
