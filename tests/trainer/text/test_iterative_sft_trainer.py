from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import DataCollatorForLanguageModeling

from tests import tiny
from tests.trainer.text import text_tools
from tests.trainer.text.text_tools import arguments, lora, moved, words
from trl_step import IterativeSFTTrainer

TEXTS = [words(count, seed) for seed, count in enumerate((3, 5, 4, 6))]


def trainer(folder: Path, model: Any = None, config: dict | None = None, **options: Any) -> IterativeSFTTrainer:
    torch.manual_seed(0)
    model = tiny.gpt2() if model is None else model
    config = {"max_steps": 50, **(config or {})}
    return IterativeSFTTrainer(model, arguments(folder, **config), **{"tokenizer": text_tools.tokenizer(), **options})


def ids(texts: list[str]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in text_tools.tokenizer()(texts)["input_ids"]]


@pytest.mark.parametrize("name", ["tokenizer", "processing_class"])
def test_steps_on_texts_learn_them(tmp_path: Path, name: str) -> None:
    ours = trainer(tmp_path, **{"tokenizer": None, name: text_tools.tokenizer()})
    found = [ours.step(texts=TEXTS) for _ in range(15)]
    assert found[-1]["loss"] < found[0]["loss"] / 2
    assert found[-1]["learning_rate"] < found[0]["learning_rate"]
    assert ours.state.global_step == 15


def test_texts_and_their_ids_are_the_same_step(tmp_path: Path) -> None:
    texts, tokens = trainer(tmp_path), trainer(tmp_path)
    torch.manual_seed(1)
    found = texts.step(texts=TEXTS)
    torch.manual_seed(1)
    assert tokens.step(input_ids=ids(TEXTS)) == found
    for one, other in zip(tiny.weights(texts.model).values(), tiny.weights(tokens.model).values(), strict=True):
        assert torch.equal(one, other)


def test_the_loss_is_that_of_the_model_on_the_padded_rows(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    batch = ours.prepare_model_inputs(ids(TEXTS), None, None)
    expected = ours.model.eval()(**batch).loss.item()
    assert ours.step(texts=TEXTS)["loss"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_a_decoder_are_trained_on(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    labels = [torch.where(torch.arange(len(row)) < 2, -100, row) for row in ids(TEXTS)]
    batch = ours.prepare_model_inputs(ids(TEXTS), None, labels)
    assert batch["labels"].tolist() == [[-100, -100, *row[2:].tolist()] + [-100] * (6 - len(row)) for row in ids(TEXTS)]
    texts = ours.prepare_model_inputs(ids(TEXTS), None, ids(TEXTS))
    plain = ours.prepare_model_inputs(ids(TEXTS), None, None)
    assert torch.equal(texts["labels"], plain["labels"])


@pytest.mark.parametrize(("mode", "kept"), [("keep_end", slice(-4, None)), ("keep_start", slice(4))])
def test_the_limit_cuts_tokens(tmp_path: Path, mode: str, kept: slice) -> None:
    ours = trainer(tmp_path, max_length=4, truncation_mode=mode)
    row = ids(TEXTS)[3]
    assert ours.prepare_model_inputs([row, row], None, None)["input_ids"].tolist() == [row[kept].tolist()] * 2
    assert ours._tokenize([TEXTS[3]], "texts")["input_ids"][0].tolist() == row[kept].tolist()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_learns_answers(tmp_path: Path, name: str) -> None:
    ours = trainer(tmp_path, tiny.SEQ2SEQ[name]())
    answers = [words(3, seed) for seed in range(20, 24)]
    found = [ours.step(texts=TEXTS, texts_labels=answers)["loss"] for _ in range(10)]
    assert found[-1] < found[0]
    with pytest.raises(ValueError, match="needs labels or texts_labels"):
        ours.step(texts=TEXTS)


def test_accumulated_batches_are_one_update(tmp_path: Path) -> None:
    rows = [TEXTS[0]] * 4
    whole = trainer(tmp_path, config={"optim": "sgd"})
    parts = trainer(
        tmp_path, config={"optim": "sgd", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    )
    for one in (whole, parts):
        one.step(texts=rows)
    torch.testing.assert_close(tiny.weights(parts.model), tiny.weights(whole.model))


def test_a_loop_over_other_data_that_was_left_changes_nothing(tmp_path: Path) -> None:
    """accelerate takes the last batch of any loader in the process for the end of an accumulation."""
    loader = iter(Accelerator(cpu=True).prepare(torch.utils.data.DataLoader([1, 2, 3, 4], batch_size=2)))
    next(loader), next(loader)
    test_accumulated_batches_are_one_update(tmp_path)


def test_an_adapter_moves_alone(tmp_path: Path) -> None:
    from peft import get_peft_model

    ours = trainer(tmp_path, get_peft_model(tiny.gpt2(), lora()))
    before = tiny.weights(ours.model)
    ours.step(texts=TEXTS)
    assert all("lora_" in name for name in moved(before, ours.model))


def test_logs_and_evaluations(tmp_path: Path) -> None:
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids(TEXTS)]
    ours = trainer(tmp_path, config={"logging_steps": 2, "eval_steps": 2}, eval_dataset=rows)
    losses = [ours.step(texts=TEXTS)["loss"] for _ in range(4)]
    logged = [entry["loss"] for entry in ours.state.log_history if "loss" in entry]
    assert logged == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    assert len([entry for entry in ours.state.log_history if "eval_loss" in entry]) == 2


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    with pytest.raises(ValueError, match="needs input_ids or texts"):
        ours.step()
    with pytest.raises(ValueError, match="texts must be a list of texts"):
        ours.step(texts="w5")
    with pytest.raises(ValueError, match=r"input_ids\[1\] must be a tensor, not list"):
        ours.step(input_ids=[torch.tensor([5]), [6]])
    with pytest.warns(UserWarning, match="training uses the texts"):
        ours.step(input_ids=ids(TEXTS), texts=TEXTS)
    with pytest.raises(ValueError, match=r"args.max_steps"):
        trainer(tmp_path, config={"max_steps": -1})
    with pytest.raises(ValueError, match="keep_middle"):
        trainer(tmp_path, truncation_mode="keep_middle")
    with pytest.raises(ValueError, match="transformers tokenizer"):
        trainer(tmp_path, tokenizer=None)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_padding_side_of_the_tokenizer_changes_nothing(tmp_path: Path, side: str) -> None:
    tokenizer = text_tools.tokenizer(side)
    ours = trainer(tmp_path, tokenizer=tokenizer)
    rows = ids(TEXTS)
    expected = [ours.model(input_ids=row[None], labels=row[None]).loss.item() for row in rows]
    counts = [len(row) - 1 for row in rows]
    mean = sum(loss * count for loss, count in zip(expected, counts, strict=True)) / sum(counts)
    assert ours.step(texts=TEXTS)["loss"] == pytest.approx(mean, rel=1e-5)
    assert tokenizer.padding_side == side


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("mode", "kept"), [("keep_end", slice(-4, None)), ("keep_start", slice(4))])
def test_the_limit_cuts_each_row_by_itself(tmp_path: Path, mode: str, kept: slice, side: str) -> None:
    collator = DataCollatorForLanguageModeling(text_tools.tokenizer(side), mlm=False)
    ours = trainer(tmp_path, max_length=4, truncation_mode=mode, data_collator=collator)
    rows = [torch.arange(10, 18), torch.arange(20, 23)]
    batch = ours.prepare_model_inputs(rows, None, rows)
    for ids, mask, labels, row in zip(
        *(batch[k] for k in ("input_ids", "attention_mask", "labels")), rows, strict=True
    ):
        assert ids[mask.bool()].tolist() == labels[mask.bool()].tolist() == row[kept].tolist()
        assert set(labels[~mask.bool()].tolist()) <= {-100}


def test_an_end_token_that_pads_as_well_is_learned_where_a_label_says_so(tmp_path: Path) -> None:
    tokenizer = text_tools.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = [torch.tensor([5, 6, tiny.EOS]), torch.tensor([5, 6, 7, tiny.EOS])]
    batch = trainer(tmp_path, tokenizer=tokenizer).prepare_model_inputs(rows, None, rows)
    assert batch["labels"].tolist() == [[5, 6, tiny.EOS, -100], [5, 6, 7, tiny.EOS]]


ROW = torch.tensor([5, 6, 7])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_ids": []}, "input_ids must be a list of tensors with at least one"),
        ({"texts": []}, "texts must be a list of texts with at least one"),
        ({"texts": ["w5 w6", ""]}, r"texts\[1\] must be \[T\]"),
        ({"input_ids": [ROW, ROW[None]]}, r"input_ids\[1\] must be \[T\] with at least one token, not \[1, 3\]"),
        ({"input_ids": [ROW], "attention_mask": [ROW, ROW]}, "attention_mask has 2 rows for 1"),
        ({"input_ids": [ROW, ROW], "labels": [ROW, ROW[:2]]}, r"labels\[1\] has 2 tokens, its text has 3"),
        ({"texts": ["w5 w6"], "texts_labels": ["w5"]}, r"labels\[0\] has 1 tokens"),
        ({"texts": ["w5 w6", "w5"]}, r"rows \[1\] have no label"),
        ({"input_ids": [ROW], "labels": [torch.full_like(ROW, -100)]}, r"rows \[0\] have no label"),
    ],
)
def test_rows_that_do_not_fit_move_no_weight(tmp_path: Path, wrong: dict, message: str) -> None:
    ours = trainer(tmp_path)
    before = tiny.weights(ours.model)
    with pytest.raises(ValueError, match=message):
        ours.step(**wrong)
    assert not moved(before, ours.model)


def test_an_end_token_that_pads_as_well_is_learned(tmp_path: Path) -> None:
    tokenizer = text_tools.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = [torch.tensor([5, 6, tiny.EOS]), torch.tensor([5, 6, 7, tiny.EOS])]
    expected = [[5, 6, tiny.EOS, -100], [5, 6, 7, tiny.EOS]]
    ours = trainer(tmp_path, tokenizer=tokenizer)
    assert ours.prepare_model_inputs(rows, None, None)["labels"].tolist() == expected
    theirs = trainer(tmp_path, tiny.t5(), tokenizer=tokenizer)
    assert [row[:4] for row in theirs.prepare_model_inputs(rows, None, rows)["labels"].tolist()] == expected


def test_a_gradient_norm_of_0_means_no_clipping(tmp_path: Path) -> None:
    """As in every trainer of transformers; every gradient was multiplied by 0."""
    found = []
    for limit in (0.0, 1e9):
        ours = trainer(tmp_path, config={"max_grad_norm": limit})
        torch.manual_seed(1)
        ours.step(texts=TEXTS)
        found.append(tiny.weights(ours.model))
        assert moved(tiny.weights(trainer(tmp_path).model), ours.model)
    assert all(torch.equal(one, other) for one, other in zip(*(each.values() for each in found), strict=True))


def test_parts_of_a_step_of_release_07() -> None:
    row = [torch.tensor([5, 6])]
    assert IterativeSFTTrainer._step_safety_checker(row, None, row, None, None) == (row, None, row, None, None)
    with pytest.raises(ValueError, match="texts must be a list of texts"):
        IterativeSFTTrainer._step_safety_checker(None, None, None, "w5", None)
    with pytest.raises(ValueError, match="labels has 2 rows for 1 texts"):
        IterativeSFTTrainer._step_safety_checker(row, None, row * 2, None, None)
