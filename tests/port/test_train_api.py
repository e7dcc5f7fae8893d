"""Scripts of TRL 0.12 to 1.9, whose `PPOTrainer` has `train()`: recognized, rewritten and run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import trl_step
from tests import tiny
from tests.port.rewriting import assert_rewritten
from tests.port.test_run import run
from trl_step.experimental import ppo as experimental
from trl_step.port.command_line import main
from trl_step.port.names import missing_names
from trl_step.port.releases import UNKNOWN_ORIGIN, Origin, origin_of
from trl_step.port.rewrite import is_of_train_api, rewritten, undecided
from trl_step.trainer import utils

WITH_TRAIN = Origin((), "requirements.txt:1", ("0.15.2",))
WITH_BOTH = Origin(("0.11.4",), "requirements.txt:1", ("0.15.2",))
IMPORT = "from trl import PPOConfig, PPOTrainer\n"

MEANS_TRAIN = [
    "PPOTrainer(args=a, model=m)",
    "PPOTrainer(config=c, policy=p)",
    "PPOTrainer(c, t, p, r, reward_model=w)",
    "PPOTrainer(c, t, p, r, w, d, v).train()",
    "trainer = PPOTrainer(c, t, p, r, w, d, v)\ntrainer.train()",
    "self.t = PPOTrainer(c, t, p)\ndef f():\n    self.t.train()",
    "class T(PPOTrainer):\n    def __init__(self, **k):\n        super().__init__(value_model=v, **k)",
    "PPOConfig(output_dir='o')",
    "PPOConfig(learning_rate=1e-5, kl_coef=0.1)",
]
MEANS_STEPS = [
    "PPOTrainer(c, m, r, t)",
    "PPOTrainer(config=c, model=m, ref_model=r, tokenizer=t, processing_class=t)",
    "trainer = PPOTrainer(c, m)\ntrainer.step(q, r, s)",
    "trainer = PPOTrainer(c, m)\nmodel.train()\ntrainer.generate(q)",
    "PPOTrainer(config=c, dataset=d)\nPPOConfig(**{}, of_a_subclass=1)",
    "PPOConfig(learning_rate=1e-5, batch_size=4, mini_batch_size=4)",
    "SFTTrainer(args=a).train()",
]


@pytest.mark.parametrize("source", MEANS_TRAIN)
def test_it_means_train(source: str) -> None:
    assert is_of_train_api((IMPORT + source).encode(), UNKNOWN_ORIGIN)
    assert not is_of_train_api(("from mine import PPOConfig, PPOTrainer\n" + source).encode(), UNKNOWN_ORIGIN)


@pytest.mark.parametrize("source", MEANS_STEPS)
def test_it_means_the_step_api(source: str) -> None:
    assert not is_of_train_api((IMPORT + source).encode(), UNKNOWN_ORIGIN)


def test_the_release_decides_where_the_text_does_not() -> None:
    for source in ("", "PPOTrainer(c, m)", "HfArgumentParser((PPOConfig, ModelConfig))"):
        assert is_of_train_api((IMPORT + source).encode(), WITH_TRAIN)
        assert not is_of_train_api((IMPORT + source).encode(), WITH_BOTH)
    assert not is_of_train_api((IMPORT + "t = PPOTrainer(c, m)\nt.step(q)").encode(), WITH_TRAIN)
    ported = b"from trl_step import PPOConfig\nPPOConfig()"
    assert not is_of_train_api(ported, WITH_TRAIN)


TRAINS = "PPOTrainer(args=a)"
CHANGES = [
    (f"from trl import PPOConfig, PPOTrainer\n{TRAINS}",
     f"from trl_step.experimental.ppo import PPOConfig, PPOTrainer\n{TRAINS}"),
    (f"from trl.trainer.ppo_trainer import PPOTrainer\n{TRAINS}",
     f"from trl_step.experimental.ppo import PPOTrainer\n{TRAINS}"),
    (f"from trl import ModelConfig, PPOConfig, PPOTrainer\n{TRAINS}",
     f"from trl_step.experimental.ppo import PPOConfig, PPOTrainer\nfrom trl_step import ModelConfig\n{TRAINS}"),
    ("from trl import PPOConfig, ModelConfig, PPOTrainer as T  # x\nT(args=a)",
     "from trl_step.experimental.ppo import PPOConfig, PPOTrainer as T\n"
     "from trl_step import ModelConfig  # x\nT(args=a)"),
    (f"def f():\n    from trl import (\n        A,\n        PPOConfig,\n        PPOTrainer,\n        B,\n    )\n"
     f"    {TRAINS}",
     "def f():\n    from trl_step.experimental.ppo import PPOConfig, PPOTrainer\n"
     f"    from trl_step import (\n        A,\n        B,\n    )\n    {TRAINS}"),
    (f"import os; from trl import PPOTrainer, A\n{TRAINS}",
     f"import os; from trl_step.experimental.ppo import PPOTrainer; from trl_step import A\n{TRAINS}"),
    ("import trl\ntrl.PPOTrainer(args=trl.trainer.PPOConfig('o'))",
     "import trl_step.experimental.ppo\nimport trl_step as trl\n"
     "trl.experimental.ppo.PPOTrainer(args=trl.experimental.ppo.PPOConfig('o'))"),
    ("from trl.experimental.ppo import PPOConfig, PPOTrainer",
     "from trl_step.experimental.ppo import PPOConfig, PPOTrainer"),
    ("from trl import PPOTrainer\nPPOTrainer(config=c, tokenizer=t, policy=p, ref_policy=r)",
     "from trl_step.experimental.ppo import PPOTrainer\n"
     "PPOTrainer(args=c, processing_class=t, model=p, ref_model=r)"),
    ("from trl import PPOTrainer\nk = {'policy': p}\nPPOTrainer(args=a, **k)",
     "from trl_step.experimental.ppo import PPOTrainer\nk = {'model': p}\nPPOTrainer(args=a, **k)"),
    ("from trl import PPOTrainer\nclass T(PPOTrainer):\n    def __init__(self):\n        super().__init__(policy=p)",
     "from trl_step.experimental.ppo import PPOTrainer\nclass T(PPOTrainer):\n"
     "    def __init__(self):\n        super().__init__(model=p)"),
    ("from trl import PPOConfig\nPPOConfig(output_dir='o', evaluation_strategy='no')",
     "from trl_step.experimental.ppo import PPOConfig\nPPOConfig(output_dir='o', eval_strategy='no')"),
    ("from trl.trainer.rloo_trainer import RLOOConfig, RLOOTrainer\nRLOOTrainer(config=RLOOConfig('o', base_model=m,"
     " non_eos_penalty=False, no_cuda=a), tokenizer=t)",
     "from trl_step.trainer.rloo_trainer import RLOOConfig, RLOOTrainer\n"
     "RLOOTrainer(config=RLOOConfig('o', use_cpu=a), tokenizer=t)"),
    ("from trl import PPOv2Config\nPPOv2Config('o', num_updates=1)",
     "from trl_step import PPOv2Config\nPPOv2Config('o')"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_change(old: str, new: str) -> None:
    assert_rewritten(old, new)


def test_a_script_of_the_step_api_keeps_its_arguments_and_place() -> None:
    old = f"{IMPORT}t = PPOTrainer(config=c, model=m, tokenizer=t, dataset=d)\nt.step(q, r, s)\n"
    assert rewritten(old.encode(), Origin(("0.11.4",)))[0].decode() == old.replace("from trl ", "from trl_step ")


def test_nothing_is_asked_about_defaults_of_the_step_api() -> None:
    source = b"from trl import PPOConfig\nPPOConfig('o', kl_coef=0.1)\n"
    assert undecided(source, UNKNOWN_ORIGIN) == []
    assert b"mini_batch_size" not in rewritten(source, Origin(("0.7.4",), "--release", ()))[0]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("RLOOTrainer(m, reward_funcs=f)", "RLOOTrainer(reward_funcs=...) is that of TRL 0.22 and later"),
        ("RLOOConfig('o', num_generations=4, beta=0.1)", "num_generations is rloo_k here, beta is kl_coef here"),
        ("RLOOConfig('o', non_eos_penalty=True)", "missing_eos_penalty, which is here, is subtracted"),
        ("PPOv2Config('o', non_eos_penalty=a)", "missing_eos_penalty, which is here, is subtracted"),
        ("RLOOConfig('o', non_eos_penalty=False, rloo_k=4)", ""),
        ("GRPOConfig('o', num_generations=4, beta=0.1)", ""),
    ],
)
def test_what_is_left_to_the_user(call: str, text: str) -> None:
    found = undecided(f"import trl\n{call}".encode(), UNKNOWN_ORIGIN)
    assert [line for line, _ in found] == [2] * bool(text)
    assert all(text in said for _, said in found)


@pytest.mark.parametrize(
    ("pin", "releases", "train_releases"),
    [
        ("trl==0.15.2", (), ("0.15.2",)),
        ("trl>=1.8", (), ("1.8.0", "1.9.0", "1.9.1", "1.9.2")),
        ("trl>=0.11.3,<0.12.2", ("0.11.3", "0.11.4"), ("0.12.0", "0.12.1")),
        ("trl>=1.12", (), ()),
    ],
)
def test_pins_of_later_releases(
    tmp_path: Path, pin: str, releases: tuple[str, ...], train_releases: tuple[str, ...]
) -> None:
    (tmp_path / "requirements.txt").write_text(f"{pin}\n")
    found = origin_of(tmp_path / "old.py", "", None)
    assert (found.releases, found.train_releases) == (releases, train_releases)
    assert found.has_only_train == (bool(train_releases) and not releases)


def test_chat_templates_that_the_scripts_import() -> None:
    tokenizer, chat = tiny.tokenizer(), [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}]

    def shown(template: str, **options: bool) -> str:
        return str(tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **options))

    assert shown(utils.SIMPLE_CHAT_TEMPLATE) == "User: w5 w6\n\nAssistant: w7\n\n"
    assert shown(utils.SIMPLE_CHAT_TEMPLATE, add_generation_prompt=True).endswith("w7\n\nAssistant:")
    assert shown(utils.SIMPLE_QUERY_CHAT_TEMPLATE) == " w5 w6 w7"
    assert shown(utils.SIMPLE_SFT_CHAT_TEMPLATE) == " w5 w6 w7w1"


# ---------------------------------------------------------------------------------------------------------------------
# with the classes themselves


def test_a_running_script_gets_the_classes_with_train() -> None:
    told: list[str] = []
    before = (trl_step.PPOTrainer, trl_step.trainer.PPOConfig)
    names = run(
        """
import trl, trl.trainer
from trl import PPOConfig, PPOTrainer
from trl.trainer.ppo_trainer import PPOTrainer as same_trainer
from trl.trainer.ppo_config import PPOConfig as same_config
places = [trl.PPOTrainer, trl.trainer.PPOTrainer, same_trainer, PPOTrainer]
class Recorder(PPOTrainer):
    pass
try:
    PPOTrainer(config=1, tokenizer=2, policy=3, ref_policy=4)
except TypeError as error:
    refused = str(error)
""",
        told,
        means_train=True,
    )
    assert set(names["places"]) == {experimental.PPOTrainer}
    assert names["same_config"] is names["PPOConfig"] is experimental.PPOConfig
    assert "settings" in names["refused"]
    assert [line.partition(": ")[2] for line in told] == [
        "PPOTrainer(tokenizer=2) -> processing_class=2 (TRL 0.12 renamed it)",
        "PPOTrainer(config=1) -> args=1 (TRL 0.13 renamed it)",
        "PPOTrainer(policy=3) -> model=3 (TRL 0.13 renamed it)",
        "PPOTrainer(ref_policy=4) -> ref_model=4 (TRL 0.13 renamed it)",
    ]
    assert (trl_step.PPOTrainer, trl_step.trainer.PPOConfig) == before
    assert trl_step.trainer.ppo_trainer.PPOTrainer is before[0]
    assert "trl.trainer.ppo_trainer" not in sys.modules


def test_a_script_is_recognized_when_it_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["trl_step"])
    path = tmp_path / "old.py"
    path.write_text(f"{IMPORT}print(PPOTrainer.__module__)\nif not PPOTrainer:\n    PPOTrainer(args=1)\n")
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == "trl_step.experimental.ppo.ppo_trainer\n"
    path.write_text(f"{IMPORT}print(PPOTrainer.__module__)\n")
    assert main([str(path)]) == 0
    assert main(["--release", "0.15.2", str(path)]) == 0
    assert capsys.readouterr().out == "trl_step.trainer.ppo_trainer\ntrl_step.experimental.ppo.ppo_trainer\n"


@pytest.mark.parametrize(
    "statement",
    [
        "from trl import RLOOConfig, RLOOTrainer, PPOv2Config, PPOv2Trainer",
        "from trl.trainer.ppov2_trainer import PPOv2Config, PPOv2Trainer",
        "from trl.trainer.ppov2_config import PPOv2Config",
        "from trl.trainer.rloo_trainer import RLOOConfig, RLOOTrainer",
        "from trl.trainer.rloo_config import RLOOConfig",
        "from trl.experimental.ppo import PPOConfig, PPOTrainer",
        "from trl.experimental.ppo import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead",
    ],
)
def test_places_of_the_old_releases(statement: str) -> None:
    assert missing_names(statement.encode()) == []
