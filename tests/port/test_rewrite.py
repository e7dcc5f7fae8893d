"""The text of an old script: what is changed, and that nothing else is."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.port.rewriting import assert_rewritten
from trl_step.absent import INSTEAD
from trl_step.port.command_line import main
from trl_step.port.edits import Edit, applied, read_source
from trl_step.port.names import missing_names
from trl_step.port.rewrite import rewritten

CHANGES = [
    ("import trl", "import trl_step as trl"),
    ("import trl as t", "import trl_step as t"),
    ("import os, trl.core", "import os, trl_step as trl, trl_step.core"),
    ("import trl.core as c", "import trl_step.core as c"),
    ("from trl import PPOTrainer  # trl", "from trl_step import PPOTrainer  # trl"),
    ("from  trl.core  import LengthSampler", "from  trl_step.core  import LengthSampler"),
    ("from peft import prepare_model_for_int8_training",
     "from peft import prepare_model_for_kbit_training as prepare_model_for_int8_training"),
    ("from transformers import load_tool", "from trl_step.port.tools import load_tool"),
    ("TrainingArguments('o', evaluation_strategy = 'no')", "TrainingArguments('o', eval_strategy = 'no')"),
    ("TrainingArguments('o', no_cuda=(a), ray_scope=1)", "TrainingArguments('o', use_cpu=(a))"),
    ("TrainingArguments(warmup_ratio=0.1, warmup_steps=5)", "TrainingArguments(warmup_steps=5)"),
    ("p(x, return_all_scores=True, top_k=2)", "p(x, top_k=2)"),
    ("TrainingArguments(ray_scope=1)", "TrainingArguments()"),
    ("TrainingArguments('o', optim='adamw_hf')", "TrainingArguments('o', optim=\"adamw_torch\")"),
    ("TrainingArguments(ray_scope=1, seed=2)", "TrainingArguments(seed=2)"),
    ("TrainingArguments(\n    'o',\n    ray_scope=1,  # x\n    seed=2,\n)",
     "TrainingArguments(\n    'o',\n    seed=2,\n)"),
    ("TrainingArguments(\n    'o',\n    ray_scope=1)", "TrainingArguments(\n    'o')"),
    ("TrainingArguments(ray_scope=1, past_index=2)", "TrainingArguments()"),
    ("TrainingArguments(adafactor=a or b)", 'TrainingArguments(optim="adafactor" if (a or b) else "adamw_torch")'),
    ("Trainer(m, tokenizer=t)", "Trainer(m, processing_class=t)"),
    ("g = {'top_k': 0.0, 'x': (1)}\nm.generate(q, **g)", "g = {'top_k': 0, 'x': (1)}\nm.generate(q, **g)"),
    ("g = dict(min_length=-1)\nm.generate(**g)", "g = dict(min_length=0)\nm.generate(**g)"),
    ("self.g = {'min_length': (-1)}\nm.generate(**self.g)", "self.g = {'min_length': 0}\nm.generate(**self.g)"),
    ("g['top_k'] = 0.0\nm.generate(**g)", "g[\"top_k\"] = 0\nm.generate(**g)"),
    ("g.update({'top_k': 0.0})\nm.generate(**g)", "g.update({'top_k': 0})\nm.generate(**g)"),
    ("k['return_all_scores'] = True\np(x, **k)", "k.update(top_k=None, sort_scores=False)\np(x, **k)"),
    ("TextEnvironment(m, generation_kwargs={'top_k': 0.0})", "TextEnvironment(m, generation_kwargs={'top_k': 0})"),
    ("PPOConfig(accelerator_kwargs={'logging_dir': 'x'})", "PPOConfig(accelerator_kwargs={'project_dir': 'x'})"),
    ("load_dataset('d', use_auth_token=True, task='x')", "load_dataset('d', token=True)"),
    ("tok.encode_plus(t, padding=True)", "tok(t, padding=True)"),
    ("class R(Trainer):\n    def compute_loss(self, m, i, o=False):\n        pass",
     "class R(Trainer):\n    def compute_loss(self, m, i, o=False, num_items_in_batch=None):\n        pass"),
    ("class R(Trainer):\n    def compute_loss(self, m, *a,  # )\n    ):\n        pass",
     "class R(Trainer):\n    def compute_loss(self, m, *a, num_items_in_batch=None  # )\n    ):\n        pass"),
    ("class R(Trainer):\n    def compute_loss(self, m, /): pass",
     "class R(Trainer):\n    def compute_loss(self, m, /, num_items_in_batch=None): pass"),
    ("class R(Trainer):\n    def compute_loss(self, é='é', *, o=(False)): pass",
     "class R(Trainer):\n    def compute_loss(self, é='é', *, o=(False), num_items_in_batch=None): pass"),
    ("class T(B):\n    def f(self, x): return super().batch_encode_plus(x)",
     "class T(B):\n    def f(self, x): return super().__call__(x)"),
    ("TrainingArguments(ray_scope=1 # why, then\n, seed=2)", "TrainingArguments(seed=2)"),
    ("k = {r'top_k': 0.0, u'min_length': -1}\nm.generate(**k)",
     "k = {\"top_k\": 0, \"min_length\": 0}\nm.generate(**k)"),
    ("k = {'use_' 'auth_token': a}\nx.from_pretrained(**k)", "k = {'token': a}\nx.from_pretrained(**k)"),
    ("m.generate(q, **{'top_k': 0.0})", "m.generate(q, **{'top_k': 0})"),
    ("m.generate(**{**b, **dict(top_k=0.0)})", "m.generate(**{**b, **dict(top_k=0)})"),
    ("k = {'top_k': 0.0} if a else b | {'top_k': -1.0}\nm.generate(**k)",
     "k = {'top_k': 0} if a else b | {'top_k': 0}\nm.generate(**k)"),
    ("m.generate(**(k := {'top_k': 0.0}))", "m.generate(**(k := {'top_k': 0}))"),
    ("from transformers import TrainingArguments as T\nT(no_cuda=a)",
     "from transformers import TrainingArguments as T\nT(use_cpu=a)"),
    ("class R(Trainer): pass\nR(m, tokenizer=t)", "class R(Trainer): pass\nR(m, processing_class=t)"),
    ("class R(t.Trainer):\n    def __init__(self, tokenizer): super().__init__(tokenizer=tokenizer)\nR(tokenizer=1)",
     "class R(t.Trainer):\n    def __init__(self, tokenizer): super().__init__(processing_class=tokenizer)\n"
     "R(tokenizer=1)"),
    ("class A(TrainingArguments): x = 1\nA('o', no_cuda=a)", "class A(TrainingArguments): x = 1\nA('o', use_cpu=a)"),
    ("Seq2SeqTrainer(m, tokenizer=t)", "Seq2SeqTrainer(m, processing_class=t)"),
    ("from trl . core import LengthSampler", "from trl_step.core import LengthSampler"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_change(old: str, new: str) -> None:
    assert_rewritten(old, new)


LEFT_ALONE = [
    "print(f'{m.generate(q, top_k=0.0)}')",
    "import trlx\nfrom trlx.core import x\nfrom . import trl\nfrom .trl import y",
    "BitsAndBytesConfig(load_in_8bit=True)",
    "TrainingArguments('o', optim='adamw_torch')\nTrainingArguments('o', optim=o)",
    "from trl_step import AutoModelForCausalLMWithValueHead as A\nA.from_pretrained('x', load_in_8bit=True)",
    "def score(return_all_scores=True): pass\nscore(return_all_scores=True)",
    "m.generate(q, top_k=50, min_length=5)",
    "other(top_k=0.0, min_length=-1, tokenizer=t)",
    "options = {'top_k': 0.0}\nsearch(**options)",
    "class A(Base):\n    def compute_loss(self, m): pass\nclass R(Trainer):\n    def compute_loss(self, m, **k): pass",
    "class T:\n    def encode_plus(self, x): pass\n    def f(self): return self.encode_plus(1)",
    "k['use_auth_token'] = other = True\nx.from_pretrained(**k)",
    "x.from_pretrained('a', device_map={[1]: 2})",
    "class Trainer: pass\nclass R(Trainer): pass\nR(tokenizer=t)",
    "A.from_pretrained('x', device_map='auto')\nA.from_pretrained('x', device_map={'': 'cpu'})",
]


@pytest.mark.parametrize("source", LEFT_ALONE)
def test_left_alone(source: str) -> None:
    assert rewritten(source.encode()) == (source.encode(), [])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("#!/bin/sh\n# coding: latin-1\nimport os\n{}", "#!/bin/sh\n# coding: latin-1\nimport torch\nimport os\n{}"),
        ("# x\n@a\ndef f(): {}", "# x\nimport torch\n@a\ndef f(): {}"),
        ("def f(): {}\nimport transformers", "def f(): {}\nimport transformers\nimport torch\n"),
        ("def f():\n    import torch\n{}", "import torch\ndef f():\n    import torch\n{}"),
        ("import torch\n{}", "import torch\n{}"),
    ],
)
def test_the_place_of_a_new_import(old: str, new: str) -> None:
    call = "x.from_pretrained(device_map={'': 0}%s)"
    got, _ = rewritten(old.format(call % "").encode())
    assert got.decode() == new.format(call % " if torch.accelerator.is_available() else None")


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "No such file"), (b"x = 1\n\n'\xe4'", "decode"), (b"x = 1\0", "null bytes"), (b"x =", "1: invalid")],
)
@pytest.mark.parametrize("mode", ["--check", "--write"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, data: bytes | None, message: str, mode: str) -> None:
    path = tmp_path / "script.py"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SystemExit, match=rf"script\.py:.*{message}"):
        main([mode, str(path)])
    assert data is None or path.read_bytes() == data


def test_a_script_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none.py")])
    assert "there is no script" in capsys.readouterr().err


def test_a_long_sum_is_walked() -> None:
    source = "x = " + " + ".join(["m.generate(top_k=0.0)"] * 300) + "".join([" + 1"] * 2000)
    assert rewritten(source.encode())[0].count(b"top_k=0)") == 300


def test_quantization() -> None:
    old = b"""from transformers import AutoModelForCausalLM as A
A.from_pretrained("x", load_in_8bit=a.x)
A.from_pretrained("x", load_in_8bit=False)
A.from_pretrained("x", load_in_8bit=a, load_in_4bit=b)
pipeline("t", model_kwargs={"load_in_8bit": True})
"""
    assert (
        rewritten(old)[0].decode()
        == """from transformers import AutoModelForCausalLM as A
from transformers import BitsAndBytesConfig
A.from_pretrained("x", quantization_config=BitsAndBytesConfig(load_in_8bit=True) if a.x else None)
A.from_pretrained("x")
A.from_pretrained("x", quantization_config=BitsAndBytesConfig(load_in_8bit=a, load_in_4bit=b) if a or b else None)
pipeline("t", model_kwargs={"quantization_config": BitsAndBytesConfig(load_in_8bit=True)})
"""
    )


def test_pipelines_that_give_all_scores() -> None:
    old = b"""from __future__ import annotations
from transformers import pipeline
p = pipeline("sentiment-analysis", model=("m"))
q = pipeline("text-generation", model="m")
p(texts, return_all_scores=True)
"""
    assert (
        rewritten(old)[0].decode()
        == """from __future__ import annotations
from transformers import pipeline
from trl_step.extras.all_scores import AllScoresPipeline
p = pipeline("sentiment-analysis", model=("m"), pipeline_class=AllScoresPipeline)
q = pipeline("text-generation", model="m")
p(texts, top_k=None, sort_scores=False)
"""
    )


@pytest.mark.parametrize("script", sorted((Path(__file__).parent / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_lines_without_a_report_are_kept(script: Path) -> None:
    data, _ = read_source(script)
    new, edits = rewritten(data)
    reported = {edit.line for edit in edits}
    kept = [line for number, line in enumerate(data.splitlines(keepends=True), start=1) if number not in reported]
    lines = iter(new.splitlines(keepends=True))
    assert all(line in lines for line in kept), "a line changed that no report names, or moved"
    ast.parse(new)


def test_file_keeps_encoding_line_ends_and_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, head, encoding in (
        ("latin.py", "# -*- coding: latin-1 -*-\r\n", "latin-1"),
        ("mark.py", "", "utf-8-sig"),
        ("utf.py", "", "utf-8"),
    ):
        path = tmp_path / name
        old = head + "x = 'é'; import trl  # ünder\r\ny = 'é'\t\r\n\x0c\r\nfrom trl import PPOTrainer"
        path.write_bytes(old.encode(encoding))
        assert main(["--write", str(path)]) == 0
        new = old.replace("import trl ", "import trl_step as trl ").replace("from trl ", "from trl_step ")
        assert path.read_bytes() == new.encode(encoding)
    capsys.readouterr()


def test_check_reports_line_by_line_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.py"
    path.write_text("import trl\n\nload_dataset('d', use_auth_token='secret')\n")
    before = path.read_bytes()
    assert main(["--check", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"{path}:1: " in told
    assert f"{path}:3: use_auth_token='secret' -> token='secret'" in told
    assert "\n-import trl\n" in told
    assert "\n+import trl_step as trl\n" in told
    assert path.read_bytes() == before
    assert main(["--write", str(path)]) == 0
    capsys.readouterr()
    assert main(["--check", str(path)]) == 0
    assert "nothing to change" in capsys.readouterr().out


RATIO, NO_STEPS, STEPS = 'k["warmup_ratio"] = 0.1', 'k["warmup_steps"] = 0', 'k["warmup_steps"] = 5'


@pytest.mark.parametrize(
    ("first", "second", "steps"),
    [
        (RATIO, NO_STEPS, 100),
        (NO_STEPS, RATIO, 100),
        (RATIO, STEPS, 5),
        (STEPS, RATIO, 5),
        ('k["warmup_ratio"] = 1 * 0.1', 'k["warmup_steps"] = zero', 100),
        ('k["warmup_steps"] = 5 + zero', RATIO, 5),
        ("k = dict(k, warmup_ratio=0.1)", NO_STEPS, 100),
        (RATIO, "zero = 1", 100),
    ],
)
@pytest.mark.parametrize("start", ["k = {'output_dir': 'o'}", "k = {'output_dir': 'o', 'warmup_steps': 0}"])
def test_ratio_and_steps_of_warm_up_on_lines_of_their_own(start: str, first: str, second: str, steps: int) -> None:
    lines = ("from transformers import TrainingArguments\nzero = 0", start, first, second, "a = TrainingArguments(**k)")
    new, _ = rewritten("\n".join(lines).encode())
    names: dict[str, Any] = {}
    exec(new, names)
    assert names["a"].get_warmup_steps(1000) == steps
    assert rewritten(new) == (new, [])


def test_names_that_are_gone_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = b"""from trl import PPOTrainer, DDPOTrainer, AlignPropTrainer
from trl.models.modeling_sd_base import DDPOPipelineOutput
from trl.models.auxiliary_modules import X
from transformers import AutoTokenizer, AutoModelWithLMHead, load_tool
import datasets
import trl.trainer.kto_trainer
"""
    assert missing_names(source) == [
        (1, f"trl_step has no AlignPropTrainer; use {INSTEAD['AlignPropTrainer']}"),
        (3, "there is no module trl_step.models.auxiliary_modules"),
        (
            4,
            "transformers has no AutoModelWithLMHead; use AutoModelForCausalLM, AutoModelForSeq2SeqLM or "
            "AutoModelForMaskedLM",
        ),
        (6, f"there is no module trl_step.trainer.kto_trainer; instead of KTOTrainer use {INSTEAD['KTOTrainer']}"),
    ]
    path = tmp_path / "old.py"
    path.write_bytes(source)
    assert main(["--write", str(path)]) == 1
    assert "has it in trl: to be done by hand" in capsys.readouterr().out


def test_of_two_edits_that_overlap_the_first_is_made() -> None:
    first, second = Edit(0, 3, "x", 1, ""), Edit(2, 4, "y", 1, "")
    assert applied(b"abcde", [second, first]) == (b"xde", [first])


def test_syntax_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_text("print 'x'\n")
    with pytest.raises(SystemExit, match=r"old\.py:1: "):
        main(["--check", str(path)])
