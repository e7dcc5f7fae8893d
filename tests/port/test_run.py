"""What a running script sees, and that nothing of it stays."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

import trl_step
from tests.hub_tools import Hub
from tests.limits import HANG
from tests.markdown_pages import ROOT, write_tiny_models
from trl_step.extras.all_scores import AllScoresPipeline
from trl_step.port.aliases import trl_is_trl_step
from trl_step.port.old.flags import translated_words
from trl_step.port.patches import translated, wrapped_functions
from trl_step.port.releases import UNKNOWN_ORIGIN, Origin
from trl_step.port.rewrite import rewritten
from trl_step.port.tools import load_tool


def run(
    source: str, told: list[str] | None = None, origin: Origin = UNKNOWN_ORIGIN, means_train: bool = False
) -> dict[str, object]:
    """The names of `source` after it ran as an old script."""
    names: dict[str, object] = {"__name__": "__main__"}
    with trl_is_trl_step(), translated((told if told is not None else []).append, origin, means_train):
        exec(compile(source, "old.py", "exec"), names)
    return names


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        write_tiny_models()
        model = transformers.AutoModelForSequenceClassification.from_pretrained("lvwerra/distilbert-imdb")
        torch.nn.init.constant_(model.classifier.bias[1:], 1.0)  # so the second label scores higher, always
        model.save_pretrained("lvwerra/distilbert-imdb")
    return str(folder / "lvwerra/distilbert-imdb")


def test_trl_is_the_same_package_and_the_same_modules() -> None:
    names = run("""
import sys
import trl, trl.core, trl.trainer.ppo_config
from trl import PPOTrainer
from trl.models.modeling_value_head import AutoModelForCausalLMWithValueHead
from trl.trainer import ppo_config
modules = [name for name in sys.modules if name.partition(".")[0] == "trl"]
""")
    assert names["trl"] is trl_step
    assert names["PPOTrainer"] is trl_step.PPOTrainer
    assert names["ppo_config"] is sys.modules["trl_step.trainer.ppo_config"]
    assert names["AutoModelForCausalLMWithValueHead"] is trl_step.AutoModelForCausalLMWithValueHead
    assert "trl.core" in names["modules"]
    for name in ("trl_step", "trl_step.core", "trl_step.trainer.ppo_config"):
        assert sys.modules[name].__name__ == name
        assert sys.modules[name].__spec__.name == name


def test_a_trl_that_is_there_is_put_aside_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    other, its_core = types.ModuleType("trl"), types.ModuleType("trl.core")
    monkeypatch.setitem(sys.modules, "trl", other)
    monkeypatch.setitem(sys.modules, "trl.core", its_core)
    finders = list(sys.meta_path)
    assert run("import trl.core")["trl"] is trl_step
    assert sys.modules["trl"] is other
    assert sys.modules["trl.core"] is its_core
    assert sys.meta_path == finders


def test_a_module_without_a_counterpart_is_said() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"there is no module trl_step\.models\.modeling_gone"):
        run("import trl.models.modeling_gone")


def test_every_patch_is_taken_off_also_behind_an_error() -> None:
    for owner, name, _ in wrapped_functions():
        getattr(owner, name)  # transformers imports it now
    before = {(repr(owner), name): vars(owner)[name] for owner, name, _ in wrapped_functions()}
    before_methods = set(dir(transformers.PreTrainedTokenizerBase))
    with pytest.raises(ZeroDivisionError):
        run("1 / 0")
    assert {(repr(owner), name): vars(owner)[name] for owner, name, _ in wrapped_functions()} == before
    assert set(dir(transformers.PreTrainedTokenizerBase)) == before_methods
    assert "load_tool" not in vars(transformers)


def test_calls_without_old_keywords_are_left_alone_and_nothing_is_told() -> None:
    told: list[str] = []
    run("from transformers import GenerationConfig\nGenerationConfig(top_k=5, min_length=2)", told)
    assert told == []


def test_each_translation_is_told_once_with_its_place_and_without_secrets() -> None:
    told: list[str] = []
    run(
        """
from transformers import TrainingArguments, GenerationConfig
for _ in range(3):
    arguments = TrainingArguments("out", evaluation_strategy="no", push_to_hub_token="hf_secret", report_to="none")
    assert str(arguments.eval_strategy) == "IntervalStrategy.NO" or arguments.eval_strategy == "no"
    assert arguments.hub_token == "hf_secret"
    assert GenerationConfig(top_k=0.0).top_k == 0
""",
        told,
    )
    assert len(told) == 3
    assert all(line.startswith("old.py:4: TrainingArguments(") for line in told[:2])
    assert told[2].startswith("old.py:7: GenerationConfig(top_k=0.0) -> top_k=0 (")
    assert "hf_secret" not in "".join(told)


def test_a_call_through_peft_is_told_at_the_line_of_the_script() -> None:
    told: list[str] = []
    run(
        """
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8, bos_token_id=0, eos_token_id=1))
model = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
model.generate(input_ids=torch.tensor([[2]]), max_new_tokens=1, do_sample=True, top_k=0.0, pad_token_id=1)
""",
        told,
    )
    assert [line.partition(" -> ")[0] for line in told] == ["old.py:7: generate(top_k=0.0)"]


def test_of_two_names_of_one_setting_the_new_one_is_taken() -> None:
    names = run("""
from transformers import TrainingArguments
arguments = TrainingArguments("out", warmup_ratio=0.1, warmup_steps=5, report_to="none")
""")
    assert names["arguments"].warmup_steps == 5


def test_all_scores_come_in_the_order_of_the_labels(classifier: str) -> None:
    names = run(f"""
from transformers import pipeline
pipe = pipeline("sentiment-analysis", model={classifier!r})
texts = ["a film", "another one", "well"]
many = pipe(texts, return_all_scores=True, function_to_apply="none", batch_size=2)
one = pipe("a film", return_all_scores=True)
best = pipe(texts)
ordered = pipe(texts, top_k=None)
given = pipeline("text-classification", model={classifier!r}, return_all_scores=True)(texts)
""")
    labels = ["NEGATIVE", "POSITIVE"]
    assert [[entry["label"] for entry in scores] for scores in names["many"]] == [labels] * 3
    assert [[entry["label"] for entry in scores] for scores in names["given"]] == [labels] * 3
    assert [entry["label"] for entry in names["one"][0]] == labels
    assert all(set(entry) == {"label", "score"} for entry in names["best"])
    assert [[entry["label"] for entry in scores] for scores in names["ordered"]] == [labels[::-1]] * 3


def test_sort_scores_goes_with_all_of_them(classifier: str) -> None:
    pipe = transformers.pipeline("sentiment-analysis", model=classifier, pipeline_class=AllScoresPipeline)
    with pytest.raises(ValueError, match="goes with top_k=None"):
        pipe(["a"], sort_scores=False, top_k=1)


def test_loading_in_8_bits_becomes_a_configuration(classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []

    def load(cls: type, name: str, *args: object, **keywords: object) -> None:
        seen.append(keywords)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", classmethod(load))
    told: list[str] = []
    run(
        """
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained("x", load_in_8bit=True, load_in_4bit=False, use_auth_token="t", device_map="auto")
AutoModelForCausalLM.from_pretrained("x", load_in_8bit=False)
""",
        told,
    )
    assert seen[0].pop("quantization_config").load_in_8bit is True
    assert seen == [{"token": "t", "device_map": "auto"}, {}]


def test_old_overrides_of_a_trainer_train(tmp_path: Path) -> None:
    told: list[str] = []
    names = run(
        f"""
import torch
from transformers import Trainer, TrainingArguments

class Old(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        return (model(inputs["x"]) - 1).pow(2).mean()

class New(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(inputs["x"]).sum()

model = torch.nn.Linear(2, 1)
arguments = TrainingArguments({str(tmp_path)!r}, evaluation_strategy="no", no_cuda=True, overwrite_output_dir=True,
    max_steps=2, report_to="none", per_gpu_train_batch_size=2, remove_unused_columns=False)
steps = Old(model, arguments, train_dataset=[dict(x=torch.ones(2))] * 4, tokenizer=None).train().global_step
""",
        told,
    )
    assert names["steps"] == 2
    assert sum("Old.compute_loss" in line for line in told) == 1
    assert not any("New.compute_loss" in line for line in told)


def test_old_flags_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--output_dir out --overwrite_output_dir --evaluation_strategy=steps --logging_dir old logs --seed 3"
    monkeypatch.setattr(sys, "argv", ["old.py", *words.split()])
    told: list[str] = []
    names = run(
        """
from transformers import HfArgumentParser, TrainingArguments
arguments, rest = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(return_remaining_strings=True)
""",
        told,
    )
    assert names["arguments"].eval_strategy == "steps"
    assert names["arguments"].seed == 3
    assert names["rest"] == ["logs"], "one value belongs to a flag, a further word does not"
    assert [line.partition(": ")[2].partition(" (")[0] for line in told] == [
        "--overwrite_output_dir -> left out", "--evaluation_strategy -> --eval_strategy", "--logging_dir -> left out"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "optim", "sampling"),
    [
        ("--adafactor --group_by_length", "adafactor", "group_by_length"),
        ("--adafactor True --group_by_length=true", "adafactor", "group_by_length"),
        ("--adafactor no --group_by_length False --include_inputs_for_metrics", "adamw_torch_fused", "random"),
    ],
)
def test_old_switches_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, words: str, optim: str, sampling: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["old.py", "--output_dir", "out", *words.split()])
    names = run("""
from transformers import HfArgumentParser, TrainingArguments
(arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
""")
    assert (names["arguments"].optim, names["arguments"].train_sampling_strategy) == (optim, sampling)
    assert names["arguments"].include_for_metrics == (["inputs"] if "metrics" in words else [])


def test_old_optimizers_and_settings_without_effect_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for words in (["--optim", "adamw_hf"], ["--optim=adamw_hf"]):
        monkeypatch.setattr(sys, "argv", ["old.py", "--output_dir", "out", *words, "--logging_dir", "logs"])
        names = run(
            """
from transformers import HfArgumentParser, TrainingArguments
(arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
found = arguments.optim, arguments.logging_dir
""",
            told,
        )
        assert names["found"] == ("adamw_torch", "logs")
    assert told[0] == "old.py:3: --optim adamw_hf -> adamw_torch (transformers 5 has torch's own)"


def test_old_settings_in_yaml_json_and_dictionaries(tmp_path: Path) -> None:
    settings = {
        "output_dir": "out", "evaluation_strategy": "steps", "warmup_ratio": 0.1, "warmup_steps": 0, "adafactor": True,
        "no_cuda": True, "logging_dir": "logs", "save_safetensors": True, "tokenizer": "mine", "group_by_length": "own",
    }  # fmt: skip
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))  # which is YAML as well
    told: list[str] = []
    names = run(
        f"""
from dataclasses import dataclass
from transformers import HfArgumentParser, TrainingArguments
@dataclass
class Own:
    tokenizer: str
    group_by_length: str
parser = HfArgumentParser((Own, TrainingArguments))
found = [
    parser.parse_dict({settings!r}),
    parser.parse_json_file({str(tmp_path / "settings.json")!r}),
    parser.parse_yaml_file({str(tmp_path / "settings.yaml")!r}),
]
logs = [training.logging_dir for _, training in found]
try:
    HfArgumentParser(Own).parse_dict({settings!r})
except ValueError as error:
    refused = str(error)
""",
        told,
    )
    found: list[tuple[object, transformers.TrainingArguments]] = names["found"]  # type: ignore[assignment]
    for own, training in found:
        assert (own.tokenizer, own.group_by_length) == ("mine", "own")  # type: ignore[attr-defined]
        assert (training.eval_strategy, training.optim, training.use_cpu) == ("steps", "adafactor", True)
        assert training.get_warmup_steps(1000) == 100
    assert names["logs"] == ["logs"] * 3
    assert "evaluation_strategy" in names["refused"], "a parser without training arguments is left alone"
    assert len(told) == len(set(told)) == 6, "each once"
    assert all(line.startswith("old.py:10: TrainingArguments(") for line in told)


def test_flags_of_the_script_itself_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["old.py", "--evaluation_strategy", "mine", "--logging_dir", "here"])
    names = run("""
from dataclasses import dataclass
from transformers import HfArgumentParser
@dataclass
class Own:
    evaluation_strategy: str = ""
    logging_dir: str = ""
(own,) = HfArgumentParser(Own).parse_args_into_dataclasses()
""")
    assert (names["own"].evaluation_strategy, names["own"].logging_dir) == ("mine", "here")


def test_names_and_methods_that_moved(classifier: str, tmp_path: Path) -> None:
    names = run(f"""
from peft import prepare_model_for_int8_training
from transformers import AutoTokenizer, load_tool, top_k_top_p_filtering
tokenizer = AutoTokenizer.from_pretrained({classifier!r}, use_auth_token=True)
batch = tokenizer.batch_encode_plus(["ab", "c"], padding=True)
one = tokenizer.encode_plus("ab")
""")
    assert len(names["batch"]["input_ids"]) == 2
    assert names["one"]["input_ids"] == names["batch"]["input_ids"][0]
    assert names["load_tool"] is load_tool


def test_tools_are_loaded_from_folders_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not downloaded, as loading one runs its code"):
        load_tool("someone/simple-calculator")
    (tmp_path / "tool_config.json").write_text(json.dumps({"tool_class": "gone.Calculator"}))
    with pytest.raises(FileNotFoundError, match=r"gone\.py"):
        load_tool(str(tmp_path))


@pytest.mark.slow
def test_module_runs_a_script_with_its_arguments_and_its_neighbours(tmp_path: Path) -> None:
    """Slow: a process of its own, which imports torch, because the interpreter's own start is part of it."""
    (tmp_path / "neighbour.py").write_text("from trl.core import LengthSampler as Sampler\n")
    (tmp_path / "old.py").write_text(
        "import sys, pickle\nfrom dataclasses import dataclass\nfrom neighbour import Sampler\nimport trl\n"
        "@dataclass\nclass Settings:\n    x: int = 1\n"
        "assert __name__ == '__main__' and pickle.loads(pickle.dumps(Settings())) == Settings()\n"
        "print(sys.argv, Sampler(2, 3)() == 2, trl.__name__)\nsys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "trl_step.port", str(tmp_path / "old.py"), "--check", "-x"],
        capture_output=True, text=True, cwd=ROOT, timeout=HANG,
    )  # fmt: skip
    assert done.stdout.strip() == f"{[str(tmp_path / 'old.py'), '--check', '-x']} True trl_step"
    assert done.returncode == 3


@pytest.mark.parametrize(("steps", "expected"), [("", 100), (", warmup_steps=0", 100), (", warmup_steps=20", 20)])
def test_the_ratio_of_warm_up_counts_without_steps(steps: str, expected: int, tmp_path: Path) -> None:
    source = (
        "from transformers import TrainingArguments\n"
        f"args = TrainingArguments(r'{tmp_path}', warmup_ratio=0.1{steps}, report_to=[], use_cpu=True)\n"
        f"assert args.get_warmup_steps(1000) == {expected}, args.get_warmup_steps(1000)"
    )
    run(source)
    exec(rewritten(source.encode())[0].decode(), {})


@pytest.mark.parametrize(("words", "expected"), [
    (["--warmup_ratio", "0.1", "--warmup_steps", "0"], ["--warmup_steps", "0.1"]),
    (["--warmup_steps=0", "--warmup_ratio=0.1"], ["--warmup_steps=0.1"]),
    (["--warmup_steps", "0"], ["--warmup_steps", "0"]),
])  # fmt: skip
def test_the_ratio_of_warm_up_on_the_command_line(words: list[str], expected: list[str]) -> None:
    assert translated_words(words, {"--warmup_steps", "--eval_strategy"}, lambda *_: None) == expected


UPLOADS = """
from transformers import GPT2Config, GPT2LMHeadModel
from peft import LoraConfig, get_peft_model
from tests.markdown_pages import byte_tokenizer
from trl import AutoModelForCausalLMWithValueHead
config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=8)
config.push_to_hub("a/config", use_temp_dir=True)
model = GPT2LMHeadModel(config)
model.push_to_hub("a/model", use_temp_dir=False, safe_serialization=True, use_auth_token="t")
AutoModelForCausalLMWithValueHead.from_pretrained(model).push_to_hub("a/head", use_temp_dir=True)
byte_tokenizer().push_to_hub(repo_path_or_name="a/tokenizer", use_temp_dir=True)
lora = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
lora.push_to_hub("a/lora", use_temp_dir=True)
"""


def test_uploads_with_arguments_of_old(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, told = Hub(), list[str]()
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(transformers.utils.hub, "hf_api", hub)
    monkeypatch.setattr(transformers.utils.hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("---\n---\n"))
    monkeypatch.setattr(transformers.utils.hub.PushToHubMixin, "_upload_modified_files", lambda *_, **__: None)
    run(UPLOADS, told)
    created = [options["repo_id"] for name, options in hub.calls if name == "create_repo"]
    assert created == ["a/config", "a/model", "a/head", "a/tokenizer", "a/lora"]
    assert [options["token"] for name, options in hub.calls if "token" in options][1] == "t"
    assert told[0].startswith("old.py:7: push_to_hub(use_temp_dir=True) -> left out (")
    assert sum("use_temp_dir=True" in line for line in told) == 1


WITHOUT_ROWS = """
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return {"x": torch.ones(2)}

class Model(torch.nn.Linear):
    def forward(self, x):
        return {"loss": super().forward(x).pow(2).mean()}

class Own(Trainer):
    def get_eval_dataloader(self, eval_dataset=None):
        return super().get_eval_dataloader(Rows())

class Kind(Trainer):
    def evaluate(self, eval_dataset=None, **options):
        return super().evaluate(Rows(), **options)

class Count(TrainerCallback):
    def on_evaluate(self, args, state, control, **options):
        found.append(state.global_step)

class GiveRows(TrainerCallback):
    def on_step_begin(self, args, state, control, **options):
        if state.global_step == 1:
            trainer.eval_dataset = Rows()

found, counts, same = [], [], []
for kind, settings, more in (
    (Trainer, TrainingArguments, []), (Seq2SeqTrainer, Seq2SeqTrainingArguments, []), (Own, TrainingArguments, []),
    (Kind, TrainingArguments, []), (Trainer, TrainingArguments, [GiveRows()]),
):
    arguments = settings("out", evaluation_strategy="steps", eval_steps=1, max_steps=2, report_to="none", use_cpu=True,
                         save_strategy="no", disable_tqdm=True)
    trainer = kind(Model(2, 2), arguments, train_dataset=Rows(), callbacks=[Count(), *more])
    same.append(trainer.args is arguments and arguments.eval_strategy.value == "steps")
    trainer.train()
    counts.append(found[:])
    found.clear()
"""


def test_an_evaluation_without_rows_is_left_out() -> None:
    """transformers 5 refuses it when the trainer is built; of old, the first evaluation failed, if it came to one."""
    told: list[str] = []
    names = run(WITHOUT_ROWS, told)
    assert names["counts"] == [[], [], [1, 2], [1, 2], [2]]
    assert all(names["same"])  # type: ignore[call-overload]
    assert sum("eval_strategy without eval_dataset -> no evaluation" in line for line in told) == 1


VERSIONS = """
import importlib.metadata
from transformers.utils.versions import require_version
import trl
require_version("trl>=0.8.6,<=0.11.9")
found = importlib.metadata.version("trl"), trl.__version__, importlib.metadata.version("torch")
about = importlib.metadata.metadata("trl")["Version"], importlib.metadata.distribution("trl").version
listed = [each.version for each in importlib.metadata.distributions(name="trl")]
"""


@pytest.mark.parametrize(
    ("origin", "expected"), [(UNKNOWN_ORIGIN, "0.11.4"), (Origin(("0.9.6",), "--release"), "0.9.6")]
)
def test_a_script_finds_the_version_of_its_release(origin: Origin, expected: str) -> None:
    told: list[str] = []
    version, class_before = trl_step.__version__, type(trl_step)
    names = run(VERSIONS, told, origin)
    found: tuple[str, ...] = names["found"]  # type: ignore[assignment]
    assert (names["about"], names["listed"]) == ((expected, expected), [expected])
    assert found[:2] == (expected, expected)
    assert found[2].startswith("2.")
    assert [line for line in told if "version" in line] == [
        line for line in told if line.endswith((f"the version of trl -> {expected}", f"trl.__version__ -> {expected}"))
    ]
    assert len([line for line in told if "version" in line]) == 2
    assert (trl_step.__version__, type(trl_step)) == (version, class_before)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("trl")


def test_configurations_in_modules_of_their_own() -> None:
    source = """
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.utils import RichProgressCallback
"""
    names = run(source)
    for name in ("DPOConfig", "SFTConfig", "RichProgressCallback"):
        assert names[name] is getattr(trl_step, name)
    assert rewritten(source.encode())[0].count(b"from trl_step.trainer.text.configs import") == 2


def test_a_setting_that_training_arguments_have_today_is_the_scripts(tmp_path: Path) -> None:
    told: list[str] = []
    source = f"""
import pickle
from dataclasses import dataclass
from transformers import HfArgumentParser, TrainingArguments
@dataclass
class Own:
    use_cache: bool = True
parser = HfArgumentParser((Own, TrainingArguments))
words = ["--use_cache", "False", "--output_dir", {str(tmp_path)!r}]
by_words = parser.parse_args_into_dataclasses(words)
by_name = parser.parse_dict({{"use_cache": False, "output_dir": {str(tmp_path)!r}}})
copied = pickle.loads(pickle.dumps(by_name[1]))
"""
    names = run(source, told)
    plain = transformers.TrainingArguments(str(tmp_path))
    for own, training in (names["by_words"], names["by_name"]):  # type: ignore[misc]
        assert own.use_cache is False
        assert type(training) is transformers.TrainingArguments
        assert training.use_cache == plain.use_cache
        assert training.output_dir == str(tmp_path)
    assert type(names["copied"]) is transformers.TrainingArguments
    assert [line.partition(": ")[2] for line in told] == [
        "use_cache of Own and TrainingArguments -> that of Own (transformers 4 had no other)"
    ]
