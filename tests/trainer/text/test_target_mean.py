"""The loss of SFT is the mean over the predicted tokens, whatever the family of the model calls its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

from tests import tiny
from tests.trainer.text import text_tools
from tests.trainer.text.text_tools import arguments, words
from trl_step import IterativeSFTTrainer, SFTTrainer

LENGTHS = (3, 5, 2, 7)
TEXTS = [words(count, seed) for seed, count in enumerate(LENGTHS)]
ROWS = Dataset.from_dict({"text": TEXTS})
SMALL = {"vocab_size": tiny.VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
RATES = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


def bart() -> Any:
    """Its own loss compares the logits of a token with that token."""
    config = tiny.bart().config
    config.is_decoder, config.is_encoder_decoder = True, False
    return transformers.BartForCausalLM(config)


MODELS = {
    "gpt2": tiny.gpt2,
    "openai-gpt": lambda: transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**SMALL, **RATES)),
    "ctrl": lambda: transformers.CTRLLMHeadModel(
        transformers.CTRLConfig(**SMALL, dff=64, resid_pdrop=0.0, embd_pdrop=0.0)
    ),
    "bert": lambda: transformers.BertLMHeadModel(
        transformers.BertConfig(
            **tiny.SIZES, intermediate_size=64, is_decoder=True, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ),
    "bart": bart,
    "llama": tiny.llama,
}  # fmt: skip


def drawn(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def by_hand(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Minus the log-prob of each token after the first of each row, alone, summed and divided by their number."""
    terms = []
    for row in rows:
        logps = model(torch.tensor([row])).logits[0].log_softmax(-1)
        terms += [-logps[at, token] for at, token in enumerate(row[1:])]
    return torch.stack(terms).sum() / len(terms)


def trainer(folder: Path, model: Any, config: dict | None = None, **options: Any) -> SFTTrainer:
    config = {"max_grad_norm": 0.0, "optim": "sgd", "lr_scheduler_type": "constant", "max_steps": 1, **(config or {})}
    return SFTTrainer(
        model, arguments(folder, **config),
        **{"train_dataset": ROWS, "eval_dataset": ROWS, "tokenizer": text_tools.tokenizer(), "max_seq_length": 16,
           "dataset_text_field": "text", **options},
    )  # fmt: skip


def logged(ours: Any) -> float:
    return next(entry["loss"] for entry in ours.state.log_history if "loss" in entry)


def tokens() -> list[list[int]]:
    return text_tools.tokenizer()(TEXTS)["input_ids"]


@pytest.mark.parametrize("name", MODELS)
def test_loss_gradient_and_evaluation_are_means_over_targets(tmp_path: Path, name: str) -> None:
    model = drawn(name)
    expected = by_hand(model, tokens())
    expected.backward()
    gradient = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = trainer(tmp_path, model)
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    before = tiny.weights(model)
    ours.train()
    assert logged(ours) == pytest.approx(expected.item(), rel=1e-5)
    for key, slope in gradient.items():
        torch.testing.assert_close(before[key] - tiny.weights(model)[key], 1e-2 * slope, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_batches_of_different_size_are_one_mean(tmp_path: Path, name: str) -> None:
    config = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "per_device_eval_batch_size": 3}
    model = drawn(name)
    expected = by_hand(model, tokens()).item()
    ours = trainer(tmp_path, model, config)
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    ours.train()
    assert logged(ours) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_packed_rows(tmp_path: Path, name: str) -> None:
    model = drawn(name)
    ours = trainer(tmp_path, model, packing=True, train_dataset=Dataset.from_dict({"text": TEXTS * 4}))
    rows = ours.train_dataset["input_ids"][:]
    assert {len(row) for row in rows} == {16}
    expected = by_hand(model, rows).item()
    assert ours.evaluate(ours.train_dataset)["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_three_targets_of_known_probability(tmp_path: Path) -> None:
    model = tiny.gpt2()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)  # every token has the probability 1/60
    ours = trainer(tmp_path, model, eval_dataset=Dataset.from_dict({"text": ["w5 w6 w7", "w8 w9"]}))
    assert ours.evaluate()["eval_loss"] == pytest.approx(4.0943446)  # log 60; over all 5 tokens it was 2.4566


def test_with_an_adapter(tmp_path: Path) -> None:
    model = drawn("gpt2")
    expected = by_hand(model, tokens()).item()
    ours = trainer(tmp_path, model, peft_config=text_tools.lora())
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_targets_has_no_loss(tmp_path: Path) -> None:
    model = drawn("gpt2")
    expected = by_hand(model, tokens()).item()
    rows = Dataset.from_dict({"text": [*TEXTS, "w5"]})
    ours = trainer(tmp_path, model, {"per_device_eval_batch_size": 1}, eval_dataset=rows)
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    batch = ours.data_collator([{"input_ids": [5], "attention_mask": [1]}])
    assert ours.training_step(ours.model, batch, ours._get_num_items_in_batch([batch], ours.args.device)).item() == 0


def test_smoothed_labels(tmp_path: Path) -> None:
    losses = [
        trainer(tmp_path, drawn(name), {"label_smoothing_factor": 0.1}).evaluate()["eval_loss"]
        for name in ("gpt2", "bart")
    ]
    for name, found in zip(("gpt2", "bart"), losses, strict=True):
        model = drawn(name).eval()
        logps = [model(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for row in tokens()]
        spread = -torch.cat(logps).mean().item()
        assert found == pytest.approx(0.9 * by_hand(model, tokens()).item() + 0.1 * spread, rel=1e-5)


def test_evaluation_of_the_iterative_trainer(tmp_path: Path) -> None:
    model = drawn("gpt2")
    expected = by_hand(model, tokens()).item()
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens()]
    ours = IterativeSFTTrainer(model, arguments(tmp_path), text_tools.tokenizer(), eval_dataset=rows)
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert ours.step(texts=TEXTS)["loss"] == pytest.approx(expected, rel=1e-5)


def test_an_encoder_decoder_accumulates_means(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny.t5()
    rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8]], "labels": [[9, 1], [10, 1]]})
    collator = transformers.DataCollatorForSeq2Seq(text_tools.tokenizer())
    config = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    torch_rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    expected = [model(**collator([row])).loss.item() for row in torch_rows]

    class Listed(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, at: int) -> dict:
            return torch_rows[at]

    ours = trainer(tmp_path, model, config, data_collator=collator, train_dataset=Listed(), eval_dataset=None)
    ours.train()
    assert logged(ours) == pytest.approx(sum(expected) / 2, rel=1e-5)


class OwnConstructor(SFTTrainer):
    """As a subclass of release 0.7 may be: its constructor is that of `transformers.Trainer`."""

    def __init__(self, model: Any, args: Any, data: Any) -> None:
        tokenizer = text_tools.tokenizer()
        packed = self._prepare_dataset(data, tokenizer, True, "text", 16, None, 1024, 3.6)
        rows = self._prepare_dataset(data, tokenizer, False, "text", 16, None, 1024, 3.6)
        collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
        transformers.Trainer.__init__(self, model, args, collator, rows, packed)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_constructor_of_its_own(tmp_path: Path, name: str) -> None:
    model, data = drawn(name), Dataset.from_dict({"text": TEXTS * 4})
    expected = by_hand(model, tokens() * 4).item()
    config = {"max_steps": 1, "gradient_accumulation_steps": 4, "optim": "sgd"}
    ours = OwnConstructor(model, arguments(tmp_path, **config), data)
    packed = by_hand(model, ours.eval_dataset["input_ids"][:]).item()
    assert ours.evaluate()["eval_loss"] == pytest.approx(packed, rel=1e-5)
    ours.train()
    assert logged(ours) == pytest.approx(expected, rel=1e-5)


def test_batches_are_not_counted_if_that_is_switched_off_later(tmp_path: Path) -> None:
    ours = trainer(tmp_path, drawn("gpt2"))
    assert ours.model_accepts_loss_kwargs
    ours.model_accepts_loss_kwargs = False
    assert not ours.model_accepts_loss_kwargs
