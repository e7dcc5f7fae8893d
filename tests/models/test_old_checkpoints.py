"""Checkpoints that releases 0.7.11 and 0.11.4 wrote load with their value heads; see `record_checkpoints.py`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.models.tiny_models import lora
from trl_step.models import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

DATA = Path(__file__).parent / "data"
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 3]])

pytestmark = pytest.mark.parametrize("release", ["0.7.11", "0.11.4"])
HEAD_LOST = pytest.mark.filterwarnings("error:.*holds no value head")


def expected(release: str, name: str) -> dict[str, torch.Tensor]:
    answers = json.loads((DATA / release / "expected.json").read_text())[name]
    return {key: torch.tensor(value) for key, value in answers.items()}


def check(model: torch.nn.Module, want: dict[str, torch.Tensor], **inputs: torch.Tensor) -> None:
    with torch.no_grad():
        logits, _, values = model.eval()(input_ids=IDS, **inputs)
    torch.testing.assert_close(logits, want["logits"], rtol=1e-5, atol=5e-6)  # recorded with six digits
    torch.testing.assert_close(values, want["values"], rtol=1e-5, atol=5e-6)


@HEAD_LOST
@pytest.mark.parametrize("kind", ["safetensors", "bin", "safetensors-shards", "bin-shards"])
def test_whole_models(release: str, kind: str) -> None:
    name = f"gpt2-{kind}"
    model = AutoModelForCausalLMWithValueHead.from_pretrained(DATA / release / name)
    check(model, expected(release, name))


@HEAD_LOST
def test_encoder_decoder(release: str) -> None:
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(DATA / release / "t5")
    check(model, expected(release, "t5"), decoder_input_ids=IDS)


@HEAD_LOST
def test_adapter(release: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / release, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "base")}))
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter")
    check(model, expected(release, "adapter"))


@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_reward_adapter(release: str) -> None:
    folder = DATA / release
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        folder / "base", peft_config=lora(), reward_adapter=str(folder / "reward")
    )
    scores = model.compute_reward_score(IDS)
    torch.testing.assert_close(scores, expected(release, "reward")["scores"], rtol=1e-5, atol=5e-6)
