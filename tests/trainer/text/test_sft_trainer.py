from __future__ import annotations

import itertools
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import DataCollatorForLanguageModeling
from transformers.utils import logging as transformers_logging

from tests import tiny
from tests.trainer.text import text_tools
from tests.trainer.text.text_tools import arguments, lora, moved, words
from trl_step import DataCollatorForCompletionOnlyLM, SFTTrainer, setup_chat_format
from trl_step.trainer import ConstantLengthDataset

ROWS = Dataset.from_dict({"text": [words(6, seed) for seed in range(8)], "other": list(range(8))})


def trainer(folder: Path, model: Any = None, config: dict | None = None, **options: Any) -> SFTTrainer:
    torch.manual_seed(0)
    return SFTTrainer(
        tiny.gpt2() if model is None else model,
        arguments(folder, **(config or {})),
        **{"train_dataset": ROWS, "eval_dataset": ROWS, "tokenizer": text_tools.tokenizer(), "max_seq_length": 8,
           "dataset_text_field": "text", **options},
    )  # fmt: skip


def losses(ours: SFTTrainer) -> list[float]:
    return [entry["loss"] for entry in ours.state.log_history if "loss" in entry]


def test_a_text_field(tmp_path: Path) -> None:
    ours = trainer(tmp_path, config={"max_steps": 10})
    assert set(ours.train_dataset.column_names) == {"input_ids", "attention_mask"}
    ours.train()
    assert losses(ours)[-1] < losses(ours)[0]
    assert ours.evaluate()["eval_loss"] < losses(ours)[0]


def test_the_default_loss_of_a_model_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.Logger.warning_once.cache_clear()  # what was said before is said again
    transformers_logging.enable_propagation()
    try:
        trainer(tmp_path, config={"max_steps": 1}).train()
    finally:
        transformers_logging.disable_propagation()
    assert "loss_type" not in caplog.text


def test_a_formatting_function_of_a_batch(tmp_path: Path) -> None:
    ours = trainer(tmp_path, dataset_text_field=None, formatting_func=lambda rows: [f"w9 {t}" for t in rows["text"]])
    assert {row[0] for row in ours.train_dataset["input_ids"]} == {9}
    with pytest.raises(ValueError, match="must return a list of texts, not str"):
        trainer(tmp_path, dataset_text_field=None, formatting_func=lambda rows: rows["text"][0])


@pytest.mark.parametrize("field", ["text", None])
def test_packed_rows_are_full(tmp_path: Path, field: str | None) -> None:
    options = {} if field else {"dataset_text_field": None, "formatting_func": lambda row: row["text"]}
    ours = trainer(tmp_path, packing=True, **options)
    assert {len(row) for row in ours.train_dataset["input_ids"]} == {8}
    assert len(ours.train_dataset) == 8 * 7 // 8
    ours.train()
    assert ours.evaluate()["eval_loss"] > 0


def test_packing_anew_does_not_read_an_old_file(tmp_path: Path) -> None:
    first = trainer(tmp_path, packing=True).train_dataset["input_ids"][:]
    other = ROWS.map(lambda row: {"text": "w50 " + row["text"]})
    assert trainer(tmp_path, packing=True, train_dataset=other).train_dataset["input_ids"][:] != first


def test_too_little_text_for_a_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_seq_length=500"):
        trainer(tmp_path, packing=True, max_seq_length=500)


@pytest.mark.parametrize("steps", [3, -1])
def test_a_packed_dataset_of_the_caller(tmp_path: Path, steps: int) -> None:
    rows = ConstantLengthDataset(text_tools.tokenizer(), ROWS, "text", seq_length=8)
    ours = trainer(tmp_path, train_dataset=rows, packing=True, config={"max_steps": steps, "num_train_epochs": 1})
    assert ours.train_dataset is rows
    assert rows.infinite is (steps > 0)
    if steps > 0:
        ours.train()
        assert ours.state.global_step == steps


def test_completions_alone(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": [f"{words(3, seed)} w20 w21 w7 w8" for seed in range(8)]})
    collator = DataCollatorForCompletionOnlyLM("w20 w21", tokenizer=text_tools.tokenizer())
    ours = trainer(tmp_path, train_dataset=rows, data_collator=collator, config={"max_steps": 20})
    batch = next(iter(ours.get_train_dataloader()))
    assert {int(label) for label in batch["labels"].flatten()} == {-100, 7, 8}
    ours.train()
    assert losses(ours)[-1] < losses(ours)[0] / 5
    with pytest.raises(ValueError, match="packing=False"):
        trainer(tmp_path, data_collator=collator, packing=True)


def test_a_chat_dataset_finds_its_own_function(tmp_path: Path) -> None:
    tokenizer = text_tools.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    talk = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    rows = Dataset.from_dict({"messages": [talk] * 4})
    ours = trainer(tmp_path, dataset_text_field=None, train_dataset=rows, eval_dataset=None, tokenizer=tokenizer)
    assert ours.train_dataset["input_ids"][0] == [5, 6]


def test_an_adapter_moves_alone(tmp_path: Path) -> None:
    ours = trainer(tmp_path, peft_config=lora())
    before = tiny.weights(ours.model)
    ours.train()
    names = moved(before, ours.model)
    assert names
    assert all("lora_" in name for name in names)
    with pytest.raises(ValueError, match=r"peft.PeftConfig"):
        trainer(tmp_path, peft_config={"r": 2})


def test_an_adapter_of_a_model_that_is_built_later(tmp_path: Path) -> None:
    ours = SFTTrainer(
        None, arguments(tmp_path), train_dataset=ROWS, tokenizer=text_tools.tokenizer(), dataset_text_field="text",
        max_seq_length=8, model_init=lambda: tiny.gpt2(), peft_config=lora(),
    )  # fmt: skip
    ours.train()
    assert {name.split(".")[-3] for name, one in ours.model.named_parameters() if one.requires_grad} == {
        "lora_A", "lora_B",
    }  # fmt: skip


def test_noise_on_the_embeddings_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, noisy = trainer(tmp_path), trainer(tmp_path, neftune_noise_alpha=5.0)
    assert noisy.args.neftune_noise_alpha == 5.0
    for ours in (plain, noisy):
        ours.train()
    assert losses(plain)[0] != losses(noisy)[0]
    embeddings = noisy.model.get_input_embeddings()
    assert not embeddings._forward_hooks
    assert torch.equal(embeddings.train()(torch.tensor([[5]])), embeddings.eval()(torch.tensor([[5]])))


def test_a_model_by_name_brings_its_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.gpt2().save_pretrained(folder)
    tokenizer = text_tools.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    ours = trainer(tmp_path, str(folder), tokenizer=None)
    assert ours.tokenizer.pad_token == ours.tokenizer.eos_token == "</s>"
    ours.train()
    assert ours.state.global_step == 3


def test_what_is_not_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the column with the text is unknown"):
        trainer(tmp_path, dataset_text_field=None)
    with pytest.warns(UserWarning, match="max_seq_length is not given: it is 64"):
        trainer(tmp_path, max_seq_length=None)
    with pytest.warns(UserWarning, match="infinite has no effect"):
        trainer(tmp_path, infinite=True)
    left = text_tools.tokenizer("left")
    with pytest.warns(UserWarning, match="pads on the left"):
        trainer(tmp_path, tokenizer=left, data_collator=DataCollatorForCompletionOnlyLM("w20", tokenizer=left))


def test_options_of_the_dataset(tmp_path: Path) -> None:
    ours = trainer(tmp_path, packing=True, dataset_kwargs={"append_concat_token": False})
    assert tiny.EOS not in {token for row in ours.train_dataset["input_ids"] for token in row}
    several = trainer(tmp_path, eval_dataset={"a": ROWS, "b": ROWS.select(range(2))})
    assert {"eval_a_loss", "eval_b_loss"} <= set(several.evaluate())


def test_the_order_of_packed_rows_comes_from_the_seed_alone(tmp_path: Path) -> None:
    def rows(global_seed: int, seed: int) -> list[list[int]]:
        random.seed(global_seed)
        return trainer(tmp_path, packing=True, config={"seed": seed}).train_dataset["input_ids"][:]

    assert rows(1, 42) == rows(2, 42)
    assert rows(1, 42) != rows(1, 43)
    assert sorted(rows(1, 42)) == sorted(rows(1, 43))


def test_a_packed_run_goes_on_with_the_rows_that_are_left(tmp_path: Path) -> None:
    config = {"per_device_train_batch_size": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", packing=True, config=config)
    whole.train()
    random.seed(7)
    resumed = trainer(tmp_path / "resumed", packing=True, config=config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert not moved(tiny.weights(whole.model), resumed.model)


def test_a_stream_of_texts(tmp_path: Path) -> None:
    ours = trainer(tmp_path, train_dataset=ROWS.to_iterable_dataset())
    assert [row["input_ids"] for row in ours.train_dataset] == trainer(tmp_path).train_dataset["input_ids"][:]
    ours.train()
    assert ours.state.global_step == 3


def test_a_packed_stream_of_texts(tmp_path: Path) -> None:
    ours = trainer(tmp_path, train_dataset=ROWS.to_iterable_dataset(), packing=True, config={"max_steps": 20})
    first = [row["input_ids"].tolist() for row in itertools.islice(ours.train_dataset, 7)]
    assert {len(row) for row in first} == {8}
    ours.train()
    assert losses(ours)[-1] < losses(ours)[0]
    again = trainer(tmp_path, train_dataset=ROWS.to_iterable_dataset(), packing=True).train_dataset
    assert [row["input_ids"].tolist() for row in itertools.islice(again, 7)] == first


def test_a_stream_of_tokens_is_taken_as_it_is(tmp_path: Path) -> None:
    stream = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 4}).to_iterable_dataset()
    assert trainer(tmp_path, train_dataset=stream, dataset_text_field=None, eval_dataset=None).train_dataset is stream


def test_neither_tokenizer_nor_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass tokenizer"):
        SFTTrainer(args=arguments(tmp_path), model_init=tiny.gpt2, train_dataset=ROWS, dataset_text_field="text")


def test_the_padding_side_of_the_tokenizer_changes_nothing(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": [words(count, seed) for seed, count in enumerate((3, 6, 4, 5))]})
    left = text_tools.tokenizer("left")
    found = [
        trainer(tmp_path, train_dataset=rows, eval_dataset=rows, tokenizer=tokenizer).evaluate()["eval_loss"]
        for tokenizer in (text_tools.tokenizer(), left)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert left.padding_side == "left"


def test_the_end_of_a_chat_is_trained(tmp_path: Path) -> None:
    model, tokenizer = setup_chat_format(tiny.gpt2(), text_tools.tokenizer())
    talk = [[{"role": "user", "content": "w5 " * n}, {"role": "assistant", "content": "w6"}] for n in (1, 3)]
    ours = trainer(
        tmp_path, model, tokenizer=tokenizer, train_dataset=Dataset.from_dict({"messages": talk}), eval_dataset=None,
        dataset_text_field=None, max_seq_length=32,
    )  # fmt: skip
    rows = [ours.train_dataset[index] for index in range(2)]
    batch = ours.data_collator(rows)
    assert batch["input_ids"].shape[1] > len(rows[0]["input_ids"])
    for row, labels in zip(rows, batch["labels"].tolist(), strict=True):
        assert labels[: len(row["input_ids"])] == row["input_ids"]
        assert row["input_ids"].count(tokenizer.eos_token_id) == 2
        assert set(labels[len(row["input_ids"]) :]) <= {-100}
    theirs = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    with pytest.warns(UserWarning, match="the end of a text is never trained"):
        trainer(tmp_path, model, tokenizer=tokenizer, data_collator=theirs)


def test_a_stream_has_no_use_for_processes(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="dataset_num_proc=2 has no effect on a stream"):
        ours = trainer(tmp_path, train_dataset=ROWS.to_iterable_dataset(), eval_dataset=None, dataset_num_proc=2)
    assert next(iter(ours.train_dataset))["input_ids"] == trainer(tmp_path).train_dataset["input_ids"][0]


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_of_messages_without_features(tmp_path: Path, packing: bool) -> None:
    tokenizer = text_tools.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    talk = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    stream = IterableDataset.from_generator(lambda: ({"messages": talk, "other": "x"} for _ in range(8)))
    assert stream.features is None
    ours = trainer(
        tmp_path, train_dataset=stream, eval_dataset=None, tokenizer=tokenizer, dataset_text_field=None,
        packing=packing, max_seq_length=3,
    )  # fmt: skip
    row = next(iter(ours.train_dataset))
    assert list(row["input_ids"])[:2] == [5, 6]
    assert "messages" not in row
    ours.train()
    assert ours.state.global_step == 3


def test_a_function_that_returns_several_texts_of_a_packed_row(tmp_path: Path) -> None:
    options = {"packing": True, "dataset_text_field": None}
    ours = trainer(tmp_path, formatting_func=lambda row: [row["text"], "w9"], **options)
    assert len(ours.train_dataset) == 8 * (7 + 2) // 8
    with pytest.raises(ValueError, match="must return its text or a list of texts, not int"):
        trainer(tmp_path, formatting_func=lambda row: 5, **options)


def test_the_default_length_is_at_most_the_positions_of_the_model(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": [words(100, 0)]})
    with pytest.warns(UserWarning, match="max_seq_length is not given: it is 64"):
        ours = trainer(tmp_path, max_seq_length=None, train_dataset=rows)
    assert len(ours.train_dataset["input_ids"][0]) == 64
    ours.train()


@pytest.mark.parametrize("packing", [False, True])
def test_rows_of_texts_are_evaluated(tmp_path: Path, packing: bool) -> None:
    ours = trainer(tmp_path, packing=packing)
    expected = ours.evaluate()["eval_loss"]
    assert ours.evaluate(ROWS)["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert ours.predict(ROWS).metrics["test_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_what_a_subclass_makes_of_the_rows_is_trained(tmp_path: Path, packing: bool) -> None:
    """With the arguments of release 0.7.11, in its order."""

    class Own(SFTTrainer):
        def _prepare_non_packed_dataloader(self, tokenizer: Any, dataset: Any, dataset_text_field: Any,
                                           max_seq_length: Any, formatting_func: Any = None,
                                           add_special_tokens: Any = True,
                                           remove_unused_columns: Any = True) -> Any:  # fmt: skip
            assert (dataset_text_field, max_seq_length, add_special_tokens, remove_unused_columns) == (
                "text", 8, False, True,
            )  # fmt: skip
            return dataset.map(lambda row: {"input_ids": [5, 6]}, remove_columns=dataset.column_names)

        def _prepare_packed_dataloader(self, tokenizer: Any, dataset: Any, dataset_text_field: Any,
                                       max_seq_length: Any, num_of_sequences: Any, chars_per_token: Any,
                                       formatting_func: Any = None, append_concat_token: Any = True,
                                       add_special_tokens: Any = True) -> Any:  # fmt: skip
            assert (num_of_sequences, chars_per_token, append_concat_token, add_special_tokens) == (7, 3.0, True, False)
            rows = super()._prepare_packed_dataloader(
                tokenizer, dataset, dataset_text_field, max_seq_length, num_of_sequences, chars_per_token,
                formatting_func, append_concat_token, add_special_tokens,
            )  # fmt: skip
            assert all(len(row["input_ids"]) == 8 for row in rows)
            return rows.map(lambda row: {"input_ids": [5, 6], "labels": [5, 6]})

    ours = Own(
        tiny.gpt2(), arguments(tmp_path), train_dataset=ROWS, eval_dataset=ROWS, tokenizer=text_tools.tokenizer(),
        max_seq_length=8, dataset_text_field="text", packing=packing, num_of_sequences=7, chars_per_token=3.0,
        dataset_kwargs={"add_special_tokens": False},
    )  # fmt: skip
    assert all(row["input_ids"] == [5, 6] for rows in (ours.train_dataset, ours.eval_dataset) for row in rows)


def test_noise_that_a_script_switches_on_by_itself(tmp_path: Path) -> None:
    ours = trainer(tmp_path, neftune_noise_alpha=5.0)
    ours.model = ours._trl_activate_neftune(ours.model)
    embeddings, word = ours.model.get_input_embeddings(), torch.tensor([[5]])
    assert not torch.equal(embeddings.train()(word), embeddings(word))
    ours.neftune_hook_handle.remove()
    assert torch.equal(embeddings(word), embeddings(word))
