"""Names of TRL 0.8 to 0.11 that scripts import from where they were then."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

import trl_step
from tests.markdown_pages import byte_tokenizer
from tests.port.rewriting import assert_rewritten
from tests.port.test_run import run
from trl_step.port import data_utils
from trl_step.port.names import missing_names

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def said(*contents: str, role: str = "bot") -> list[dict[str, str]]:
    return [{"role": role, "content": content} for content in contents]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = byte_tokenizer()
    made.chat_template = TEMPLATE
    return made


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"messages": said("a", "b")}, {"text": "<bot>a<bot>b"}),
        ({"messages": said("a"), "chosen": said("b")}, {"text": "<bot>a", "chosen": "<bot>b"}),
        ({"prompt": said("q", role="me")}, {"prompt": "<me>q<bot>"}),
        ({"prompt": said("q", role="me"), "chosen": said("a"), "rejected": said("b")},
         {"prompt": "<me>q<bot>", "chosen": "a", "rejected": "b"}),
        ({"prompt": said("q", role="me"), "completion": said("a"), "label": True},
         {"prompt": "<me>q<bot>", "completion": "a", "label": True}),
        ({"chosen": said("a"), "rejected": said("b")}, {"chosen": "<bot>a", "rejected": "<bot>b"}),
        ({"chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "b"}),
        ({"text": "a"}, {"text": "a"}),
    ],
)  # fmt: skip
def test_rows_of_chats_become_text(row: dict[str, Any], texts: dict[str, Any], tokenizer: Any) -> None:
    assert data_utils.maybe_apply_chat_template(row, tokenizer) == texts
    assert data_utils.is_conversational(row) == (row != texts)


def test_rows_that_have_no_text_are_refused(tokenizer: Any) -> None:
    with pytest.raises(KeyError, match="needs messages, a prompt or an answer"):
        data_utils.apply_chat_template({"answer": said("a")}, tokenizer)
    with pytest.raises(ValueError, match="does not begin with the prompt '<me>q<bot>'"):
        data_utils.apply_chat_template({"prompt": said("q", role="me"), "chosen": said("a", role="me")}, tokenizer)


QUESTION, YES, NO = said("q", role="me"), said("yes"), said("no")


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"chosen": QUESTION + YES, "rejected": QUESTION + NO}, QUESTION, YES, NO),
        ({"chosen": QUESTION + YES, "rejected": QUESTION}, QUESTION, YES, []),
        ({"chosen": "I am well", "rejected": "I am ill"}, "I am ", "well", "ill"),
        ({"prompt": "q", "chosen": QUESTION + YES, "rejected": QUESTION + NO}, QUESTION, YES, NO),
        ({"prompt": QUESTION, "chosen": YES, "rejected": NO}, QUESTION, YES, NO),
        ({"prompt": "q", "chosen": "same a", "rejected": "same b"}, "q", "same a", "same b"),
    ],
)
def test_what_both_answers_begin_with_is_the_prompt(
    row: dict[str, Any], prompt: Any, chosen: Any, rejected: Any
) -> None:
    assert data_utils.maybe_extract_prompt(row) == {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_pairs_become_rows_with_labels() -> None:
    pairs = Dataset.from_dict({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c", "d"]})
    wanted = {"prompt": ["p", "q", "p", "q"], "completion": ["a", "b", "c", "d"], "label": [True, True, False, False]}
    assert data_utils.unpair_preference_dataset(pairs).to_dict() == wanted
    both = data_utils.maybe_unpair_preference_dataset(DatasetDict(train=pairs))
    assert both["train"].to_dict() == wanted
    assert data_utils.maybe_unpair_preference_dataset(both) is both
    assert data_utils.maybe_extract_prompt({"text": "a"}) == {"text": "a"}


IMPORTS = """
import trl
import trl.trainer.sft_config
from trl import TrlParser, maybe_extract_prompt, is_sklearn_available
from trl.data_utils import maybe_extract_prompt as again
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import PreTrainedModelWrapper, pad_to_length
from trl.commands import init_zero_verbose
same = maybe_extract_prompt is again is trl.maybe_extract_prompt
version = trl.__version__
"""


def test_a_script_finds_names_where_they_were() -> None:
    told: list[str] = []
    names = run(IMPORTS, told)
    assert names["same"]
    assert names["version"] == "0.11.4"
    assert (names["DPOConfig"], names["PreTrainedModelWrapper"]) == (
        trl_step.DPOConfig,
        trl_step.PreTrainedModelWrapper,
    )
    assert any("maybe_extract_prompt -> trl_step.port.data_utils.maybe_extract_prompt" in line for line in told)
    assert not {"data_utils", "TrlParser"} & vars(trl_step).keys()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("trl_step.data_utils")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from trl import PPOTrainer, TrlParser",
         "from trl_step.commands.cli_utils import TrlParser\nfrom trl_step import PPOTrainer"),
        ("from trl.trainer.dpo_config import DPOConfig", "from trl_step.trainer.text.configs import DPOConfig"),
        ("import trl.data_utils as d", "import trl_step.port.data_utils as d"),
        ("import trl\ntrl.maybe_extract_prompt(x)",
         "import trl_step as trl\ntrl.port.data_utils.maybe_extract_prompt(x)"),
    ],
)  # fmt: skip
def test_the_text_names_them_where_they_are(old: str, new: str) -> None:
    assert_rewritten(old, new)
    assert missing_names(old.encode()) == []


def test_what_is_not_here_is_explained() -> None:
    source = b"from trl import WinRateCallback, GKDConfig\nfrom trl.trainer.utils import first_true_indices"
    assert [what.partition("; ")[2].partition(" o")[0] for _, what in missing_names(source)] == [
        "use SFTTrainer",
        "use a TrainerCallback",
        "the trainers here have loops",
    ]
