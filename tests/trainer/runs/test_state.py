"""What `load_state` refuses, with everything that differs in its message and nothing changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from peft import LoraConfig

from tests.tiny import batch, config, gpt2, tokenizer, trainer, with_value_head
from tests.trainer.runs.state_tools import changed, everything
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer
from trl_step.trainer.runs.autosave import AutoSave


def build(model: Any = None, optimizer: Any = None, scheduler: Any = None, dataset: Any = None, **options: Any) -> Any:
    model = with_value_head("gpt2") if model is None else model
    optimizer = None if optimizer is None else optimizer(model)
    scheduler = None if scheduler is None else scheduler(optimizer)
    reference = options.pop("reference", None)
    return PPOTrainer(
        config(**options), model, reference, tokenizer(), dataset, optimizer=optimizer, lr_scheduler=scheduler
    )


def lora(rank: int = 4) -> Any:
    peft_config = LoraConfig(r=rank, lora_alpha=8, task_type="CAUSAL_LM", fan_in_fan_out=True)
    return with_value_head("gpt2", peft_config=peft_config)


class Rows(torch.utils.data.Dataset):
    def __init__(self, count: int = 16) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index])


def sgd(model: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def part_of(model: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.v_head.parameters(), lr=1e-3)


def linear(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LinearLR(optimizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state of one step with the trainer of `build()`; nothing writes into it."""
    folder = tmp_path_factory.mktemp("run") / "state"
    ours = build()
    ours.step(*batch())
    ours.save_state(folder)
    return folder


def deeper() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLMWithValueHead.from_pretrained(gpt2(layers=3))


OTHERS = {
    "settings": (
        lambda: build(cliprange=0.1, gamma=0.9, kl_penalty="full"),
        ["kl_penalty: kl in the state, full here", "gamma: 1 in the state, 0.9 here", "cliprange: 0.2 in"],
    ),
    "learning rate": (
        lambda: build(learning_rate=0.5),
        ["learning_rate: 0.001 in the state, 0.5 here", "optimizer: lr: 0.001 in the state, 0.5 here"],
    ),
    "model": (
        lambda: build(deeper()),
        [r"policy: transformer.h.2.ln_1.weight: none in the state, float32 \[32\] here", "policy: 7 more"],
    ),
    "dtype": (
        lambda: build(with_value_head("gpt2").to(torch.bfloat16)),
        [r"float32 \[60, 32\] in the state, bfloat16 \[60, 32\] here"],
    ),
    "adapter": (
        lambda: build(lora()),
        ["policy: transformer.wte.weight: .* none here", "frozen weights are not those of the saved run"],
    ),
    "reference": (
        lambda: build(reference=with_value_head("gpt2", seed=3)),
        ["the reference's weights are not those of the saved run"],
    ),
    "optimizer": (lambda: build(optimizer=sgd), ["class: torch.optim.adam.Adam in the state, torch.optim.sgd.SGD"]),
    "parameters": (lambda: build(optimizer=part_of), ["the optimizer has other parameters"]),
    "scheduler": (
        lambda: build(optimizer=sgd, scheduler=linear),
        ["scheduler: none in the state, torch.optim.lr_scheduler.LinearLR here"],
    ),
    "controller": (
        lambda: build(adap_kl_ctrl=False),
        ["KL controller: AdaptiveKLController in the state, FixedKLController here"],
    ),
    "data set": (lambda: build(dataset=Rows()), [r"data set: none in the state, {'samples': 16, 'batches': 2} here"]),
}


@pytest.mark.filterwarnings("ignore:torch.bfloat16")
@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_and_nothing_changes(name: str, folder: Path) -> None:
    make, lines = OTHERS[name]
    ours = make()
    before = everything(ours)
    with pytest.raises(ValueError, match="is not one of this run, and nothing was changed") as raised:
        ours.load_state(folder)
    for line in lines:
        assert raised.match(line)
    assert changed(before, everything(ours)) == []
    assert ours.steps_done == 0


def test_two_adapters_of_different_base_weights(tmp_path: Path) -> None:
    build(lora()).save_state(tmp_path)
    other = lora()
    with torch.no_grad():
        other.pretrained_model.base_model.model.transformer.h[1].ln_1.weight[5] += 1e-6
    with pytest.raises(ValueError, match="the policy's frozen weights are not those of the saved run"):
        build(other).load_state(tmp_path)


def test_a_larger_data_set(tmp_path: Path) -> None:
    build(dataset=Rows()).save_state(tmp_path)
    with pytest.raises(ValueError, match="data set: samples: 16 in the state, 17 here"):
        build(dataset=Rows(17)).load_state(tmp_path)


def test_settings_that_change_nothing_that_is_learnt_may_differ(folder: Path) -> None:
    ours = build(steps=7, exp_name="again", forward_tokens=100, gradient_checkpointing=True)
    assert ours.load_state(folder) == 1


def test_settings_may_differ_on_purpose(folder: Path) -> None:
    ours = build(cliprange=0.1, gamma=0.9)
    with pytest.raises(ValueError, match="gamma"):
        ours.load_state(folder, may_differ=("cliprange",))
    assert ours.load_state(folder, may_differ=("cliprange", "gamma")) == 1
    assert ours.config.cliprange == 0.1


def test_a_name_in_may_differ_that_is_no_setting(folder: Path) -> None:
    with pytest.raises(ValueError, match="may_differ: 'clip_range' is not a setting"):
        build().load_state(folder, may_differ=("clip_range",))


def test_a_fresh_value_head_of_the_reference_makes_no_other_run(folder: Path) -> None:
    reference = with_value_head("gpt2")
    torch.nn.init.normal_(reference.v_head.summary.weight)
    assert build(reference=reference).load_state(folder) == 1


def test_damage_changes_nothing(tmp_path: Path) -> None:
    trainer().save_state(tmp_path)
    (path,) = tmp_path.glob("data-*/policy.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    ours = trainer()
    before = everything(ours)
    with pytest.raises(ValueError, match=f"{tmp_path} is damaged: policy.safetensors has changed since"):
        ours.load_state(tmp_path)
    assert changed(before, everything(ours)) == []


def test_other_packages_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl_step.trainer.runs import state as run_state

    monkeypatch.setattr(run_state, "packages", lambda: {"torch": "9.9", "numpy": "1"})
    ours = build()
    ours.save_state(tmp_path)
    monkeypatch.setattr(run_state, "packages", lambda: {"torch": "9.10", "numpy": "1"})
    with pytest.warns(UserWarning, match=r"saved with torch 9\.9: the last bits"):
        ours.load_state(tmp_path)


def test_a_loader_of_another_kind_is_warned_of(tmp_path: Path) -> None:
    class Own(PPOTrainer):
        def prepare_dataloader(self, dataset: Any, data_collator: Any = None) -> Any:
            return [1, 2, 3]

    ours = Own(config(), with_value_head("gpt2"), None, tokenizer(), dataset=Rows())
    with pytest.warns(UserWarning, match="where trainer.dataloader stands is not saved: it is a list"):
        ours.save_state(tmp_path)
    assert ours.load_state(tmp_path) == 0


def test_the_files_are_safetensors_and_json(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text(), parse_constant=pytest.fail)


def test_latest_without_a_place_to_look() -> None:
    with pytest.raises(ValueError, match=r'load_state\("latest"\) looks in config.save_dir, which is None'):
        build().load_state("latest")


def test_latest_before_the_first_save_starts_from_the_beginning(tmp_path: Path) -> None:
    ours = build(save_dir=str(tmp_path / "states"))
    before = everything(ours)
    assert ours.load_state("latest") == 0
    assert changed(before, everything(ours)) == []


def test_the_size_that_memory_allowed_and_what_the_doctor_saw_come_back(tmp_path: Path) -> None:
    ours = build()
    for seed in range(3):
        ours.step(*batch(seed=seed))  # no response ends
    ours._budget.most_samples = 2
    ours.save_state(tmp_path)
    again = build()
    again.load_state(tmp_path)
    assert again._budget.most_samples == 2
    assert [finding.diagnosis.name for finding in ours._sampling.checkup.findings] == ["no end token"]
    assert repr(again._sampling.checkup.state_dict()) == repr(ours._sampling.checkup.state_dict())  # NaN is not NaN


def test_deepspeed_is_refused(tmp_path: Path) -> None:
    ours = build()
    ours.accelerator.state.distributed_type = DistributedType.DEEPSPEED
    with pytest.raises(ValueError, match="cannot be saved under DeepSpeed"):
        ours.save_state(tmp_path)
    ours.config.save_every = 1
    with pytest.raises(ValueError, match=r"cannot be saved under DeepSpeed.*unset save_every"):
        AutoSave(ours._run_state, ours._processes, ours._counters, ours.config)
