"""Names of release 0.7.11 that scripts import from its modules, and what they hold."""

from __future__ import annotations

from datasets import Dataset

from trl_step.extras import dataset_formatting
from trl_step.models import utils
from trl_step.trainer import ddpo_trainer, ppo_trainer


def test_formats_of_chats_and_of_data() -> None:
    assert utils.FORMAT_MAPPING["chatml"]().bos_token == "<|im_start|>"
    rows = Dataset.from_dict({"prompt": ["2 + 2?"], "completion": ["4"]})
    assert dict(rows.features) == dataset_formatting.FORMAT_MAPPING["instruction"]
    chats = Dataset.from_dict({"messages": [[{"role": "user", "content": "hello"}]]})
    entry = chats.features["messages"]
    assert getattr(entry, "feature", entry) == dataset_formatting.FORMAT_MAPPING["chatml"][0]


def test_model_cards_take_a_name_and_an_address() -> None:
    for module in (ppo_trainer, ddpo_trainer):
        card = module.MODEL_CARD_TEMPLATE.format(model_name="Mine", model_id="me/mine")
        assert "# Mine" in card
        assert card.startswith("---\nlibrary_name: ")
        assert "{" not in card
    assert 'from_pretrained("me/mine")' in ppo_trainer.MODEL_CARD_TEMPLATE.format(model_name="", model_id="me/mine")
