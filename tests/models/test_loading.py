from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import OfflineModeIsEnabled
from torch import nn

from tests.models.tiny_models import inputs_of, lora, plain, same_state, trained_adapter, wrapped, wrapper_of
from trl_step.models import AutoModelForCausalLMWithValueHead
from trl_step.models.loading import current_device
from trl_step.trainer.text.text_trainer import model_of


def test_a_model_object_is_wrapped_not_copied() -> None:
    model = plain("gpt2")
    assert AutoModelForCausalLMWithValueHead.from_pretrained(model).pretrained_model is model


def test_a_folder_may_be_a_path_object(tmp_path: Path) -> None:
    model = wrapped()
    model.save_pretrained(tmp_path)
    assert same_state(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path), model)


def test_a_path_object_is_never_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder nope \(looked for .*; a name on the hub has to be"
    ):
        AutoModelForCausalLMWithValueHead.from_pretrained(Path("./nope"))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"config\.json is a file: give the folder that it is in"):
        AutoModelForCausalLMWithValueHead.from_pretrained(f"{tmp_path}/config.json")


@pytest.mark.parametrize(("saved", "asked", "told"), [
    ("gpt2", "t5", r"is a decoder-only model \(gpt2\): load it with AutoModelForCausalLMWithValueHead"),
    ("t5", "gpt2", r"is an encoder-decoder model \(t5\): load it with AutoModelForSeq2SeqLMWithValueHead"),
])  # fmt: skip
def test_a_model_of_the_other_kind(tmp_path: Path, saved: str, asked: str, told: str) -> None:
    plain(saved).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=told):
        wrapper_of(asked).from_pretrained(str(tmp_path))


def test_a_subfolder_is_searched_for_the_value_head_too(tmp_path: Path) -> None:
    model = wrapped()
    model.save_pretrained(tmp_path / "inner")
    assert same_state(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, subfolder="inner"), model)


@pytest.mark.parametrize("thing", [3, nn.Linear(1, 1), None])
def test_something_else_is_refused(thing: object) -> None:
    with pytest.raises(ValueError, match=f"not {type(thing).__name__}"):
        AutoModelForCausalLMWithValueHead.from_pretrained(thing)


@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_a_copied_adapter_draws_nothing_from_the_random_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seeded script starts with the same value head, whether or not a reference is kept."""
    trained_adapter(tmp_path)
    (tmp_path / "adapter" / "model.safetensors").unlink()

    def head() -> torch.Tensor:
        torch.manual_seed(11)
        model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter")
        return model.v_head.summary.weight

    with_reference = head()
    monkeypatch.setattr("trl_step.models.modeling_base.keep_reference", lambda policy: (None, None))
    assert torch.equal(with_reference, head())


def test_a_value_head_that_the_model_object_carries_is_taken_over() -> None:
    model, donor = plain("gpt2"), wrapped()
    model.v_head = donor.v_head
    taken = AutoModelForCausalLMWithValueHead.from_pretrained(model)
    assert torch.equal(taken.v_head.summary.weight, donor.v_head.summary.weight)


def test_head_arguments_do_not_reach_transformers(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, summary_dropout_prob=0.4)
    assert model.v_head.dropout.p == 0.4


def test_model_arguments_reach_transformers(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_a_subclass_may_name_other_modules_and_arguments(tmp_path: Path) -> None:
    class WithExtra(AutoModelForCausalLMWithValueHead):
        supported_args = ("extra_width",)
        supported_modules = ("v_head", "extra")

        def __init__(self, pretrained_model, extra_width=2, **kwargs):
            super().__init__(pretrained_model, **kwargs)
            self.extra = nn.Linear(extra_width, 1)

        def post_init(self, state_dict):
            super().post_init(state_dict)
            own = {name.removeprefix("extra."): t for name, t in state_dict.items() if name.startswith("extra.")}
            if own:
                self.extra.load_state_dict(own)

    model = WithExtra.from_pretrained(plain("gpt2"), extra_width=3)
    model.save_pretrained(tmp_path)
    assert same_state(WithExtra.from_pretrained(tmp_path, extra_width=3), model)


class Mapped:
    """A model that accelerate has spread over devices, as far as a wrapper can see."""

    def __new__(cls, device_map: dict[str, object]):
        model = plain("gpt2")
        model.hf_device_map = device_map
        return model


def test_a_device_map_is_followed() -> None:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(Mapped({"": "cpu"}))
    assert model.is_sequential_parallel
    logits, loss, values = model(**inputs_of())
    assert loss is None
    assert logits.device == values.device == model.v_head.summary.weight.device
    assert not wrapped().is_sequential_parallel


@pytest.mark.parametrize("device_map", [{"transformer": 0, "lm_head": "cpu"}, {"": "disk"}])
def test_offloaded_layers_are_refused(device_map: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="offloaded to CPU or disk"):
        AutoModelForCausalLMWithValueHead.from_pretrained(Mapped(device_map))


def test_the_device_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import PartialState

    known = dict(PartialState._shared_state)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert current_device() == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert current_device() == "cpu"
    assert dict(PartialState._shared_state) == known


def test_warnings_point_at_the_callers_line(tmp_path: Path) -> None:
    plain("gpt2").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="holds no value head") as seen:
        # policy and reference: it is said once
        _ = [AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path) for _ in range(2)]
    assert [warning.filename for warning in seen if "value head" in str(warning.message)] == [__file__]


def test_peft_config_must_be_one() -> None:
    with pytest.raises(ValueError, match=r"peft_config must be a peft.PeftConfig.*'lora'"):
        wrapped(peft_config="lora")


def test_peft_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = lora()
    monkeypatch.setattr("trl_step.import_utils.is_peft_available", lambda: False)
    with pytest.raises(ImportError, match="pip install peft"):
        wrapped(peft_config=config)


MISSING = ["./nope", "../nope/model", "a/b/c", "~/nope", "runs/my model", "nope/"]


@pytest.mark.parametrize("place", [*MISSING, "/nope/model"])
@pytest.mark.parametrize("load", ["policy", "reward_adapter", "text trainer", "base of an adapter"])
def test_a_folder_that_is_not_there_is_named(load: str, place: str, tmp_path: Path) -> None:
    model, arguments = place, {}
    if load == "reward_adapter":
        model, arguments = plain("gpt2"), {"peft_config": lora(), "reward_adapter": place}
    elif load == "base of an adapter":
        trained_adapter(tmp_path)
        model = tmp_path / "adapter"
        config = model / "adapter_config.json"
        config.write_text(config.read_text().replace(str(tmp_path / "base"), place))
    with pytest.raises(FileNotFoundError) as raised:
        model_of(place, None) if load == "text trainer" else wrapper_of("gpt2").from_pretrained(model, **arguments)
    assert f"there is no folder {place} (looked for {os.path.abspath(place)})" in str(raised.value)
    assert ("expanduser" in str(raised.value)) == place.startswith("~")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no config.json, so there is no model in it$"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    plain("gpt2").save_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=f"no model in it; there is a model in {tmp_path / 'model'}$"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path, subfolder="model")


@pytest.mark.parametrize("place", ["nope", "runs/nope"])
def test_a_name_that_is_neither_a_folder_nor_a_repository(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: (_ for _ in ()).throw(OfflineModeIsEnabled))
    with pytest.raises(FileNotFoundError, match=f"there is no folder {place} in .*the hub .*: no connection"):
        AutoModelForCausalLMWithValueHead.from_pretrained(place)
