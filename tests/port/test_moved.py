"""Names, modules, attributes and methods of the old packages: where a script finds them, running and rewritten."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers.generation.utils import GenerateNonBeamOutput

from tests.markdown_pages import byte_tokenizer
from tests.port.rewriting import assert_rewritten
from tests.port.test_run import run
from trl_step.port.moved import BY_HAND, MOVED, MOVED_IMPORTS, MOVED_MODULES, Place
from trl_step.port.names import missing_names
from trl_step.port.rewrite import rewritten
from trl_step.port.stand_ins import AdamW, build_inputs_with_special_tokens

NOT_INSTALLED = ("evaluate",)


def exists(place: Place) -> bool:
    return hasattr(importlib.import_module(place[0]), place[1])


def test_what_moved_is_gone_and_is_where_the_table_says() -> None:
    assert [place for place in (*MOVED, *BY_HAND) if exists(place)] == []
    assert [place for place in MOVED.values() if place[0] not in NOT_INSTALLED and not exists(place)] == []
    for old, new in MOVED_MODULES.items():
        importlib.import_module(new)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(old)


def test_a_kind_of_attention_can_be_imported_and_is_of_no_model() -> None:
    source = """
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaFlashAttention2, LlamaSdpaAttention
class Own(LlamaSdpaAttention):
    pass
of_a_model = issubclass(LlamaAttention, LlamaSdpaAttention)
"""
    assert run(source)["of_a_model"] is False
    for use in ("LlamaSdpaAttention.forward = print", "LlamaFlashAttention2(None)", "Own()"):
        with pytest.raises(TypeError, match="transformers 5 is one class for each model"):
            run(source + use)


def test_a_running_script_finds_what_moved() -> None:
    told: list[str] = []
    names = run(
        """
import transformers
from transformers import AdamW, AutoModelForVision2Seq, BloomTokenizerFast, deepspeed
from transformers.deepspeed import is_deepspeed_zero3_enabled as asked
from transformers.generation_utils import SampleOutput, top_k_top_p_filtering
import transformers.generation_logits_process as processors
same = transformers.deepspeed.is_deepspeed_zero3_enabled is asked is deepspeed.is_deepspeed_zero3_enabled
for _ in range(2):
    assert not transformers.is_tf_available()
""",
        told,
    )
    assert names["AdamW"] is AdamW
    assert names["AutoModelForVision2Seq"] is transformers.AutoModelForImageTextToText
    assert names["BloomTokenizerFast"] is transformers.PreTrainedTokenizerFast
    assert names["SampleOutput"] is GenerateNonBeamOutput
    assert names["processors"].__name__ == "transformers.generation.logits_process"
    assert names["same"]
    assert len(told) == len(set(told)) == 9
    assert "old.py:3: transformers.AdamW -> trl_step.port.stand_ins.AdamW" in told
    assert told[-1] == "old.py:9: transformers.is_tf_available -> trl_step.port.stand_ins.is_tf_available"


def test_nothing_of_it_stays() -> None:
    kind = type(transformers)
    with pytest.raises(ZeroDivisionError):
        run("import transformers.deepspeed\n1 / 0")
    assert type(transformers) is kind
    assert not hasattr(transformers, "AdamW")
    assert not hasattr(transformers, "deepspeed")
    assert "transformers.deepspeed" not in sys.modules
    assert not hasattr(byte_tokenizer(), "additional_special_tokens")


def test_libraries_and_unknown_names_see_the_packages_of_today() -> None:
    told: list[str] = []
    source = (
        "names = {'__name__': 'peft.of_mine'}\n"
        "exec('try:\\n    from transformers import AdamW\\nexcept ImportError:\\n    AdamW = None', names)\n"
        "import transformers\nfound = names['AdamW'], hasattr(transformers, 'NoSuchName')\n"
    )
    assert run(source, told)["found"] == (None, False)
    assert told == []


def test_a_function_that_uses_the_packages_is_pickled() -> None:
    names = run(
        """
import dill, datasets, peft, transformers, trl
from datasets.fingerprint import Hasher
def words(row):
    return [datasets.__name__, peft.__name__, transformers.utils.__name__, trl.__name__, row]
pickled = dill.dumps(words)
again = dill.loads(pickled)(1)
equal = Hasher.hash(words) == Hasher.hash(words)
"""
    )
    assert names["again"] == ["datasets", "peft", "transformers.utils", "trl_step", 1]
    assert names["equal"]
    assert b"WithOldNames" not in names["pickled"]  # type: ignore[operator]


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(ImportError, match=r"datasets\.load_metric is in the package evaluate today: pip install eval"):
        run("from datasets import load_metric")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import transformers as t\nt.AutoModelForVision2Seq",
         "import transformers as t\nt.AutoModelForImageTextToText"),
        ("import transformers\ntransformers.AdamW(p)",
         "import transformers\nimport trl_step.port.stand_ins\ntrl_step.port.stand_ins.AdamW(p)"),
        ("from transformers import AdamW, AutoTokenizer",
         "from transformers import AutoTokenizer\nfrom trl_step.port.stand_ins import AdamW\n"),
        ("import transformers\nif transformers.deepspeed.is_deepspeed_zero3_enabled(): pass",
         "import transformers\nif transformers.integrations.deepspeed.is_deepspeed_zero3_enabled(): pass"),
        ("from transformers.deepspeed import HfDeepSpeedConfig",
         "from transformers.integrations.deepspeed import HfDeepSpeedConfig"),
        ("from transformers import deepspeed", "from transformers.integrations import deepspeed"),
        ("import transformers.deepspeed as d", "import transformers.integrations.deepspeed as d"),
        ("from transformers.generation_utils import SampleOutput as S",
         "from transformers.generation.utils import GenerateNonBeamOutput as S"),
        ("import peft\nm = peft.prepare_model_for_int8_training(m, output_embedding_layer_name='x')",
         "import peft\nm = peft.prepare_model_for_kbit_training(m)"),
        ("from peft import prepare_model_for_int8_training as p\np(m, True, layer_norm_names=['x'])",
         "from peft import prepare_model_for_kbit_training as p\np(m, True)"),
        ("LoraConfig(r=1, merge_weights=False)", "LoraConfig(r=1)"),
        ("from datasets import load_metric", "from evaluate import load as load_metric"),
        ("a = [tok.eos_token_id] + tok.additional_special_tokens_ids",
         "a = [tok.eos_token_id] + tok.extra_special_tokens_ids"),
        ("tok.additional_special_tokens = ['<a>']", "tok.extra_special_tokens = ['<a>']"),
        ("tok(x, pad_to_max_length=True, max_length=3)", 'tok(x, padding="max_length", max_length=3)'),
        ("tok.encode_plus(x, pad_to_max_length=p)", 'tok(x, padding="max_length" if p else False)'),
        ("m.push_to_hub(n, use_temp_dir=False, use_auth_token=t)", "m.push_to_hub(n, token=t)"),
        ("Accelerator(fp16=True)", 'Accelerator(mixed_precision="fp16")'),
        ("class R(Trainer):\n    def training_step(self, model, inputs): pass",
         "class R(Trainer):\n    def training_step(self, model, inputs, num_items_in_batch=None): pass"),
        ("class R(Trainer):\n    def log(self, logs): pass",
         "class R(Trainer):\n    def log(self, logs, start_time=None): pass"),
    ],
)  # fmt: skip
def test_change(old: str, new: str) -> None:
    assert_rewritten(old, new)
    assert missing_names(old.encode()) == []


@pytest.mark.parametrize(
    "source",
    [
        "transformers = own()\ntransformers.AdamW(p)",
        "from torch.optim import AdamW",
        "@dataclass\nclass A:\n    additional_special_tokens: str = ''\nargs.additional_special_tokens",
        "class R(Trainer):\n    def log(self, logs, *more): pass\n    def training_step(self, a, b, c): pass",
        "class R(Trainer):\n    def log(self, logs, **more): pass",
        "class R(Logger):\n    def log(self, logs): pass",
    ],
)
def test_left_alone(source: str) -> None:
    assert rewritten(source.encode()) == (source.encode(), [])


def test_what_nothing_stands_for_is_reported_with_what_to_do() -> None:
    source = b"from transformers import AutoModelWithLMHead, TextDataset\nfrom huggingface_hub import HfFolder"
    assert [what for _, what in missing_names(source)] == [
        "transformers has no AutoModelWithLMHead; use AutoModelForCausalLM, AutoModelForSeq2SeqLM or "
        "AutoModelForMaskedLM",
        'transformers has no TextDataset; use datasets.load_dataset("text", data_files=...)',
        "huggingface_hub has no HfFolder; use get_token() and login()",
    ]


TOKENIZER = """
from tests.markdown_pages import byte_tokenizer
t = byte_tokenizer(pad_token="<pad>")
t.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]})
ids, tokens = t.additional_special_tokens_ids, t.additional_special_tokens
t.additional_special_tokens = ["<a>"]
left = t.additional_special_tokens
one = t("hi", pad_to_max_length=True, max_length=4)["input_ids"]
two = t.encode_plus("hi", pad_to_max_length=True, max_length=4)["input_ids"]
three = t.encode("hi", pad_to_max_length=True, max_length=4)
"""


def test_a_tokenizer_under_its_old_names() -> None:
    told: list[str] = []
    names: dict[str, Any] = run(TOKENIZER, told)
    tokenizer = names["t"]
    assert names["ids"] == tokenizer.convert_tokens_to_ids(["<a>", "<b>"])
    assert (names["tokens"], names["left"]) == (["<a>", "<b>"], ["<a>"])
    hi = tokenizer("hi")["input_ids"]
    assert names["one"] == names["two"] == names["three"] == [*hi, 0, 0], "transformers 5 would not pad"
    assert [line.partition(": ")[2].partition(" ->")[0] for line in told] == [
        "PreTrainedTokenizerBase.additional_special_tokens_ids",
        "PreTrainedTokenizerBase.additional_special_tokens",
        "PreTrainedTokenizerBase(pad_to_max_length=True)",
        "PreTrainedTokenizerBase.encode_plus",
        "encode(pad_to_max_length=True)",
    ]


SPECIAL = [("<pad>", 0), ("<|endoftext|>", 1)]


@pytest.mark.parametrize(
    ("templates", "one", "two"),
    [
        (("<pad> $A <|endoftext|>", "<pad> $A <|endoftext|> $B <|endoftext|>"), [0, 5, 6, 1], [0, 5, 6, 1, 7, 1]),
        (("$A <|endoftext|>", "$A <|endoftext|> $B <|endoftext|>"), [5, 6, 1], [5, 6, 1, 7, 1]),
        (("<pad> $A", "<pad> $A <pad> $B"), [0, 5, 6], [0, 5, 6, 0, 7]),
        (("$A", "<pad> $B <|endoftext|> $A"), [5, 6], [0, 7, 1, 5, 6]),
        (("$A", "$A $B"), [5, 6], [5, 6, 7]),
        (None, [5, 6], [5, 6, 7]),
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_special_tokens_around_texts(
    templates: tuple[str, str] | None, one: list[int], two: list[int], side: str
) -> None:
    tokenizer = byte_tokenizer(pad_token="<pad>", padding_side=side, truncation_side=side)
    if templates is not None:
        single, pair = templates
        processor = TemplateProcessing(single=single, pair=pair, special_tokens=SPECIAL)
        tokenizer.backend_tokenizer.post_processor = processor
    assert build_inputs_with_special_tokens(tokenizer, [5, 6]) == one
    assert build_inputs_with_special_tokens(tokenizer, [5, 6], [7]) == two
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("one text", "or two")]
    assert build_inputs_with_special_tokens(tokenizer, *ids) == tokenizer("one text", "or two")["input_ids"]


def test_special_tokens_where_a_text_depends_on_its_place_or_has_no_letters() -> None:
    first = Tokenizer(models.BPE({"<s>": 0, "\u2581": 1, "a": 2, "\u2581a": 3, "aa": 4}, [("\u2581", "a"), ("a", "a")]))
    first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    others = Tokenizer(models.BPE({"<s>": 0, "y": 1, "n": 2}, []))
    for backend, ids in ((first, [3, 2]), (others, [1, 2, 1])):
        backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
        assert build_inputs_with_special_tokens(tokenizer, ids) == [0, *ids]
        assert build_inputs_with_special_tokens(tokenizer, ids, ids[1:]) == [0, *ids, *ids[1:]]
        assert build_inputs_with_special_tokens(tokenizer, [], []) == [0]


def test_a_tokenizer_has_its_old_method() -> None:
    source = "from tests.markdown_pages import byte_tokenizer\nt = byte_tokenizer()\n"
    assert run(f"{source}found = t.build_inputs_with_special_tokens([5])")["found"] == [5]


def test_an_old_method_is_reported_when_it_is_called() -> None:
    source = """
from tests.markdown_pages import byte_tokenizer
t = byte_tokenizer()
there = hasattr(t, "encode_plus"), callable(getattr(t, "batch_encode_plus", None))
encode = t.encode_plus
for _ in range(2):
    ids = encode("hi")["input_ids"]
"""
    told: list[str] = []
    names = run(source, told)
    assert names["there"] == (True, True)
    assert names["ids"] == byte_tokenizer()("hi")["input_ids"]
    assert told == ["old.py:7: PreTrainedTokenizerBase.encode_plus -> call the tokenizer"]


def test_the_old_optimizer_has_its_defaults() -> None:
    (group,) = AdamW([torch.zeros(1)]).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-6, 0.0)
    with pytest.raises(ValueError, match="correct_bias=False is not there"):
        AdamW([torch.zeros(1)], correct_bias=False)


def test_a_trainer_and_its_callbacks_of_that_time(tmp_path: Path) -> None:
    told: list[str] = []
    names: dict[str, Any] = run(
        f"""
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator
from tests.markdown_pages import byte_tokenizer

seen = []

class Old(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        return (model(inputs["x"]) - 1).pow(2).mean()

    def training_step(self, model, inputs):
        seen.append("step")
        return super().training_step(model, inputs)

    def log(self, logs):
        seen.append("log")
        super().log(logs)

class Watch(TrainerCallback):
    def on_train_begin(self, args, state, control, model, tokenizer, **kwargs):
        seen.append(tokenizer)

arguments = TrainingArguments({str(tmp_path)!r}, use_cpu=True, max_steps=1, logging_steps=1, save_strategy="no",
    report_to=[], remove_unused_columns=False, disable_tqdm=True)
tokenizer = byte_tokenizer()
trainer = Old(torch.nn.Linear(2, 1), arguments, train_dataset=[dict(x=torch.ones(2))] * 8, tokenizer=tokenizer,
    data_collator=default_data_collator, callbacks=[Watch()])
trainer.train()
same = trainer.tokenizer is tokenizer
""",
        told,
    )
    assert names["same"]
    assert names["seen"] == [names["tokenizer"], "step", "log", "log"]
    assert sum("Trainer.tokenizer -> processing_class" in line for line in told) == 1
    assert sum("does not get" in line for line in told) == 3


def test_imports_that_moved_are_one_table() -> None:
    assert MOVED_IMPORTS["transformers", "deepspeed"] == ("transformers.integrations", "deepspeed")
    assert MOVED.items() <= MOVED_IMPORTS.items()
