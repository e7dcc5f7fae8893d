from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from tests import tiny
from tests.trainer.text import text_tools
from tests.trainer.text.text_tools import arguments, classifier, lora, moved, preferences
from trl_step import RewardConfig, RewardTrainer
from trl_step.trainer import compute_accuracy


class Scores(torch.nn.Module):
    """Stands for a model: the score of a text is its first token."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        return type("Output", (), {"logits": input_ids[:, :1].float()})


def trainer(folder: Path, rows: Dataset | None = None, **options: object) -> RewardTrainer:
    rows = preferences() if rows is None else rows
    config = arguments(folder, RewardConfig, max_length=16, **options.pop("config", {}))
    return RewardTrainer(
        options.pop("model", None) or classifier(), config, train_dataset=rows, eval_dataset=rows,
        **{"tokenizer": text_tools.tokenizer(), **options},
    )  # fmt: skip


def pair(chosen: list[int], rejected: list[int]) -> dict[str, torch.Tensor]:
    sides = {"chosen": chosen, "rejected": rejected}
    batch = {f"input_ids_{side}": torch.tensor(ids).view(-1, 1) for side, ids in sides.items()}
    return batch | {f"attention_mask_{side}": torch.ones(len(ids), 1) for side, ids in sides.items()}


def test_the_loss_of_two_pairs_by_hand(tmp_path: Path) -> None:
    batch = pair([5, 6], [4, 8]) | {"margin": torch.tensor([0.5, 1.0])}

    def loss(difference: float) -> float:
        return math.log1p(math.exp(-difference))

    found = trainer(tmp_path).compute_loss(Scores(), batch)
    assert found.item() == pytest.approx((loss(1 - 0.5) + loss(-2 - 1.0)) / 2)
    old = trainer(tmp_path, config={"exact_v07": True}).compute_loss(Scores(), batch)
    assert old.item() == pytest.approx((loss(0.5) + loss(0.0) + loss(-2.5) + loss(-3.0)) / 4)


@pytest.mark.parametrize("name", ["tokenizer", "processing_class"])
def test_it_learns_pairs_of_texts(tmp_path: Path, name: str) -> None:
    ours = trainer(tmp_path, config={"max_steps": 20}, **{"tokenizer": None, name: text_tools.tokenizer()})
    assert ours.tokenizer is ours.processing_class
    ours.train()
    metrics = ours.evaluate()
    assert metrics["eval_accuracy"] == 1.0
    assert metrics["eval_loss"] < 0.4


def test_texts_and_their_tokens_are_the_same_rows(tmp_path: Path) -> None:
    texts = trainer(tmp_path).train_dataset
    tokenizer = text_tools.tokenizer()
    columns = {}
    for side in ("chosen", "rejected"):
        tokens = tokenizer([row["prompt"] + row[side] for row in preferences()])
        columns |= {f"{part}_{side}": tokens[part] for part in ("input_ids", "attention_mask")}
    assert trainer(tmp_path, Dataset.from_dict(columns)).train_dataset[:] == texts[:]


def test_only_the_adapter_and_the_head_of_a_peft_model_move(tmp_path: Path) -> None:
    ours = trainer(tmp_path, peft_config=lora("SEQ_CLS"))
    before = tiny.weights(ours.model)
    ours.train()
    names = moved(before, ours.model)
    assert any("lora_B" in name for name in names)
    assert all("lora" in name or "score.modules_to_save" in name for name in names)


def test_several_evaluation_sets_and_plain_arguments(tmp_path: Path) -> None:
    sets = {"one": preferences(), "two": preferences(3)}
    with pytest.warns(UserWarning, match="max_length"):
        ours = RewardTrainer(
            classifier(), arguments(tmp_path, TrainingArguments), train_dataset=sets["one"], eval_dataset=sets,
            tokenizer=text_tools.tokenizer(),
        )  # fmt: skip
    assert {"eval_one_accuracy", "eval_two_accuracy"} <= set(ours.evaluate())


def test_arguments_of_the_caller_stay_as_they_are(tmp_path: Path) -> None:
    config = arguments(tmp_path, RewardConfig, max_length=8)
    ours = RewardTrainer(classifier(), config, train_dataset=preferences(), tokenizer=text_tools.tokenizer())
    assert config.remove_unused_columns
    assert not ours.args.remove_unused_columns


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"max_length=5 and args.max_length=16"):
        trainer(tmp_path, max_length=5)
    with pytest.raises(ValueError, match="pass tokenizer="):
        trainer(tmp_path, tokenizer=None)
    with pytest.raises(TypeError, match="two names of one argument"):
        trainer(tmp_path, processing_class=text_tools.tokenizer())


def test_accuracy_counts_the_first_column_and_warns_of_ties() -> None:
    with pytest.warns(UserWarning, match="1 of 4"):
        found = compute_accuracy((torch.tensor([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0], [3.0, 0.0]]), torch.zeros(4)))
    assert found == {"accuracy": 0.75}


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_of_a_pair_does_not_depend_on_the_texts_beside_it(tmp_path: Path, side: str) -> None:
    texts = {"chosen": ["w5 w6", "w7 w8 w9 w10"], "rejected": ["w5 w11 w12 w13", "w7"]}
    ours = trainer(tmp_path, Dataset.from_dict(texts), tokenizer=text_tools.tokenizer(side))
    ours.model.eval()
    rows = [ours.train_dataset[i] for i in range(2)]
    alone = [ours.compute_loss(ours.model, ours.data_collator([row])).item() for row in rows]
    assert ours.compute_loss(ours.model, ours.data_collator(rows)).item() == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_scores_of_bfloat16_weights_are_compared_in_float32(tmp_path: Path) -> None:
    class Half(Scores):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            output = super().forward(input_ids, attention_mask)
            output.logits = (output.logits / 256).bfloat16()
            return output

    found = trainer(tmp_path).compute_loss(Half(), pair([1], [0]))
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(math.log1p(math.exp(-1 / 256)))  # in bfloat16 it was 0.6914


def test_an_evaluation_before_a_training_knows_the_padding(tmp_path: Path) -> None:
    model = classifier()
    model.config.pad_token_id = 7
    ours = trainer(tmp_path, model=model)
    texts = Dataset.from_dict({"chosen": ["w5 w6", "w7 w8 w9 w10"], "rejected": ["w5 w11 w12 w13", "w9"]})
    ours.eval_dataset = trainer(tmp_path, texts).train_dataset
    terms = []
    for row in ours.eval_dataset:
        chosen, rejected = (
            model.eval()(torch.tensor([row[f"input_ids_{side}"]])).logits.item() for side in ("chosen", "rejected")
        )
        terms.append(math.log1p(math.exp(rejected - chosen)))
    assert ours.evaluate()["eval_loss"] == pytest.approx(sum(terms) / 2, rel=1e-5)


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_the_head_of_an_adapter_for_another_task_is_trained_and_saved(tmp_path: Path, task: str | None) -> None:
    from peft import PeftModel

    with pytest.warns(UserWarning, match="a reward model needs 'SEQ_CLS'"):
        ours = trainer(tmp_path, peft_config=lora(task))
    before = tiny.weights(ours.model)
    ours.train()
    assert any("score" in name for name in moved(before, ours.model))
    ours.save_model(str(tmp_path / "saved"))
    torch.manual_seed(3)
    loaded = classifier(0)
    torch.nn.init.normal_(loaded.score.weight)
    loaded = PeftModel.from_pretrained(loaded, str(tmp_path / "saved"))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded.eval()(ids).logits, ours.model.eval()(ids).logits)


def test_a_head_that_stays_as_it_is_is_told(tmp_path: Path) -> None:
    from peft import get_peft_model

    with pytest.warns(UserWarning, match="the score head of the PeftModel is not trained"):
        trainer(tmp_path, model=get_peft_model(classifier(), lora(None)))


def test_rows_of_texts_are_evaluated(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    assert ours.evaluate(preferences())["eval_loss"] == pytest.approx(ours.evaluate()["eval_loss"])


def test_processes_for_preparing_the_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    real = Dataset.map

    def recorded(self: Dataset, *args: object, num_proc: int | None = None, **kwargs: object) -> Dataset:
        asked.append(num_proc)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Dataset, "map", recorded)
    run = trainer(tmp_path, config={"dataset_num_proc": 2})
    assert asked == [2, 2]
    assert (run.args.dataset_num_proc, RewardConfig(str(tmp_path)).dataset_num_proc) == (2, None)
    trainer(tmp_path, preferences().to_iterable_dataset(num_shards=1))  # has no num_proc
