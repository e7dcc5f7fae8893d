"""Scripts in the style of TRL 0.7's examples run unmodified, and plainly once rewritten, with equal numbers."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2ForSequenceClassification, LlamaConfig, LlamaForCausalLM

from tests import tiny_diffusion
from tests.markdown_pages import byte_tokenizer, write_tiny_models
from trl_step.port.command_line import main

SCRIPTS = Path(__file__).parent / "scripts"
TOOL = """
from transformers import Tool


class Calculator(Tool):
    name = "calculator"
    description = "adds"

    def __call__(self, query):
        first, second = query.split("+")
        return str(int(first) + int(second))
"""
CASES = {
    "sentiment": ["--model_name", "gpt2", "--query_dataset", "reviews", "--batch_size", "4", "--mini_batch_size", "2",
                  "--reward_model", "sentiment-analysis:lvwerra/distilbert-imdb"],
    "t5_sentiment": ["google/flan-t5-small", "lvwerra/distilbert-imdb", "reviews"],
    "multi_adapter": ["--model_name", "gpt2", "--rm_adapter", "judge", "--dataset_name", "reviews"],
    "calculator": ["gpt2", "calculator"],
    "ddpo": ["--pretrained_model", "stable-diffusion"],
    "stack_llama_rl": ["--model_name", "llama", "--tokenizer_name", "llama", "--reward_model_name", "reward",
                       "--data_folder", "stack", "--load_in_8bit", "False", "--adafactor", "True", "--save_freq", "1"],
}  # fmt: skip

WITHOUT_OLD_KEYWORDS = ("ddpo",)
"""Scripts of which only the imports change."""


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, adapters, data and a tool of the names that `CASES` gives."""
    folder = tmp_path_factory.mktemp("assets")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        write_tiny_models()
        tiny_diffusion.pipeline().save_pretrained("stable-diffusion")
        tokenizer = byte_tokenizer(pad_token="<pad>")
        sizes = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        LlamaForCausalLM(
            LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, **sizes)
        ).save_pretrained("llama")
        tokenizer.save_pretrained("llama")
        gpt2 = GPT2Config.from_pretrained("gpt2", num_labels=1)
        GPT2ForSequenceClassification(gpt2).save_pretrained("reward")
        judge = GPT2ForSequenceClassification.from_pretrained("gpt2", num_labels=2)
        adapter = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["c_attn"], fan_in_fan_out=True)
        get_peft_model(judge, adapter).save_pretrained("judge")
        for path, rows in (
            ("reviews/train.jsonl", [{"text": f"the film number {i} was well worth seeing"} for i in range(16)]),
            ("stack/data/rl/train.jsonl", [{"question": f"how do I print {i} in a loop", "id": i} for i in range(8)]),
        ):
            Path(path).parent.mkdir(parents=True)
            Path(path).write_text("\n".join(map(json.dumps, rows)))
        Path("calculator").mkdir()
        Path("calculator/tool_config.json").write_text(json.dumps({"tool_class": "adder.Calculator"}))
        Path("calculator/adder.py").write_text(TOOL)
    return folder


@pytest.fixture
def script(assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A copy of the script beside its models."""
    shutil.copytree(assets, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(SCRIPTS / f"{request.param}.py", tmp_path))


def final_score(text: str) -> str:
    match = re.search(r"final score (\S+)", text)
    assert match, text
    return match.group(1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", CASES, indirect=True)
def test_runs_as_it_stands_and_plainly_once_rewritten(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = CASES[script.stem]
    torch.manual_seed(0)
    release = ["--release", "0.7.11"]  # `HfArgumentParser((ScriptArguments, PPOConfig))` is from its time
    assert main([*release, script.name, *arguments]) == 0
    as_it_stands = capsys.readouterr()
    told = [line for line in as_it_stands.err.splitlines() if line.startswith("trl_step.port:")]
    assert told or script.stem in WITHOUT_OLD_KEYWORDS
    assert len(told) == len(set(told))

    assert main(["--write", *release, script.name]) == 0
    assert main(["--check", script.name]) == 0
    assert not re.search(r"\btrl\b(?!,)", "\n".join(re.findall(r"^(?:from|import) (\S+)", script.read_text(), re.M)))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [script.name, *arguments])
    torch.manual_seed(0)
    runpy.run_path(str(script), run_name="__main__")
    assert final_score(capsys.readouterr().out) == final_score(as_it_stands.out)
