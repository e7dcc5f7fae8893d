from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.trainer.text import text_tools
from tests.trainer.text.text_tools import arguments, lora, moved, preferences
from trl_step import DPOTrainer

SIZES = {"max_length": 24, "max_prompt_length": 8}


def seeded(name: str = "gpt2", dropout: float = 0.0, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return (tiny.CAUSAL | tiny.SEQ2SEQ)[name](dropout)


def trainer(folder: Path, model: Any = None, ref_model: Any = None, config: dict | None = None, **options: Any) -> Any:
    rows = preferences()
    seq2seq = {"max_target_length": 8} if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else {}
    return DPOTrainer(
        seeded() if model is None else model,
        ref_model,
        args=arguments(folder, **(config or {})),
        **{
            "train_dataset": rows,
            "eval_dataset": rows,
            "tokenizer": text_tools.tokenizer(),
            **SIZES,
            **seq2seq,
            **options,
        },
    )


def logged(ours: Any, name: str) -> list[float]:
    return [entry[name] for entry in ours.state.log_history if name in entry]


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo", "kto_pair"])
@pytest.mark.parametrize("model", ["llama", "t5"])
def test_chosen_answers_gain_on_rejected_ones(tmp_path: Path, loss_type: str, model: str) -> None:
    ours = trainer(tmp_path, seeded(model), loss_type=loss_type, config={"max_steps": 8})
    start = ours.evaluate()
    assert start["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)
    ours.train()
    end = ours.evaluate()
    assert end["eval_loss"] < start["eval_loss"]
    assert end["eval_rewards/accuracies"] == 1.0
    assert end["eval_rewards/margins"] > 0
    assert logged(ours, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)


def test_the_reference_stays_and_the_policy_moves(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    policy, reference = tiny.weights(ours.model), tiny.weights(ours.ref_model)
    ours.train()
    assert moved(policy, ours.model)
    assert not moved(reference, ours.ref_model)


def test_dropout_is_off_in_both_unless_it_is_wanted(tmp_path: Path) -> None:
    rates = {
        wanted: {
            module.p
            for model in (ours.model, ours.ref_model)
            for module in model.modules()
            if isinstance(module, torch.nn.Dropout)
        }
        for wanted in (True, False)
        for ours in [trainer(tmp_path, seeded(dropout=0.5), disable_dropout=wanted)]
    }
    assert rates == {True: {0}, False: {0.5}}


def test_an_adapter_needs_no_second_model(tmp_path: Path) -> None:
    ours = trainer(tmp_path, peft_config=lora())
    assert ours.ref_model is None
    before = tiny.weights(ours.model)
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    base = ours.compute_reference_log_probs(batch)
    ours.train()
    assert all("lora" in name for name in moved(before, ours.model))
    torch.testing.assert_close(ours.compute_reference_log_probs(batch), base)
    assert ours.model.active_adapter == "default"
    assert ours.evaluate()["eval_rewards/margins"] > 0


def test_an_adapter_may_have_an_explicit_reference(tmp_path: Path) -> None:
    other = seeded(seed=1)
    ours = trainer(tmp_path, ref_model=other, peft_config=lora())
    plain = trainer(tmp_path, other)
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    expected = plain.concatenated_forward(plain.model, batch)[:2]
    torch.testing.assert_close(ours.compute_reference_log_probs(batch), expected)


def test_a_trained_adapter_is_held_against_itself(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(seeded(), lora())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    ours = trainer(tmp_path, model)
    assert ours.evaluate()["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)
    ours.train()
    assert logged(ours, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)
    assert ours.evaluate()["eval_rewards/margins"] > 0


def test_named_adapters_of_one_model(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = get_peft_model(seeded(), lora(), adapter_name="policy")
    model.add_adapter("before", lora())
    ours = trainer(tmp_path, model, model_adapter_name="policy", ref_adapter_name="before")
    ours.train()
    assert ours.model.active_adapter == "policy"
    assert ours.evaluate()["eval_rewards/margins"] > 0


def test_precomputed_log_probs_are_those_from_before_the_training(tmp_path: Path) -> None:
    ours, usual = trainer(tmp_path, precompute_ref_log_probs=True), trainer(tmp_path)
    assert ours.ref_model is None
    for one in (ours, usual):
        one.train()
    assert ours.evaluate()["eval_rewards/margins"] == pytest.approx(usual.evaluate()["eval_rewards/margins"], rel=1e-3)
    assert logged(ours, "loss") == pytest.approx(logged(usual, "loss"), rel=1e-4)


def test_several_evaluation_sets_are_precomputed_each(tmp_path: Path) -> None:
    ours = trainer(tmp_path, precompute_ref_log_probs=True, eval_dataset={"a": preferences(3), "b": preferences(5)})
    assert {"eval_a_loss", "eval_b_loss"} <= set(ours.evaluate())
    assert {len(rows["reference_chosen_logps"]) for rows in ours.eval_dataset.values()} == {3, 5}


@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_answers_at_evaluation_go_to_wandb(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer(tmp_path, seeded(model), generate_during_eval=True)
    seen: list[dict] = []
    log = ours.log
    monkeypatch.setattr(ours, "log", lambda logs, *rest: (seen.append(dict(logs)), log(logs, *rest)))
    ours.evaluate()
    table = next(entry["game_log"] for entry in seen if "game_log" in entry)
    assert table.columns == ["Prompt", "Policy", "Ref Model"]
    assert len(table.data) == 4
    assert {row[0] for row in table.data} <= set(preferences()["prompt"])
    assert not [entry for entry in ours.state.log_history if "game_log" in entry]


def test_generating_needs_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_step.trainer.dpo_trainer.is_wandb_available", lambda: False)
    with pytest.raises(ImportError, match="pip install wandb"):
        trainer(tmp_path, generate_during_eval=True)


def test_models_by_name(tmp_path: Path) -> None:
    seeded().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    ours = trainer(tmp_path, str(tmp_path / "model"), str(tmp_path / "model"))
    assert ours.model.dtype == ours.ref_model.dtype == torch.float32
    half = trainer(tmp_path, str(tmp_path / "model"), model_init_kwargs={"dtype": torch.bfloat16})
    assert half.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="model_init_kwargs is for a model given by name"):
        trainer(tmp_path, model_init_kwargs={})


def test_gradient_checkpointing_with_an_adapter_gives_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, saving = (
        trainer(tmp_path, seeded("llama"), peft_config=_llama_adapter(), config={"gradient_checkpointing": on})
        for on in (False, True)
    )
    saving.model.load_state_dict(plain.model.state_dict())
    for one in (plain, saving):
        one.train()
    after, other = tiny.weights(plain.model), tiny.weights(saving.model)
    torch.testing.assert_close(after, other, rtol=1e-4, atol=1e-6)


def _llama_adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss_type 'dpo'"):
        trainer(tmp_path, loss_type="dpo")
    with pytest.raises(ValueError, match="pass tokenizer="):
        trainer(tmp_path, tokenizer=None)
    with pytest.raises(ValueError, match="is_encoder_decoder="):
        DPOTrainer(args=arguments(tmp_path), model_init=tiny.gpt2, tokenizer=text_tools.tokenizer())
    with pytest.warns(UserWarning, match="label_smoothing"):
        trainer(tmp_path, loss_type="ipo", label_smoothing=0.1)
    rows = preferences().map(lambda row: {"chosen": [row["chosen"]]})
    with pytest.raises(ValueError, match="chosen must be a text, not list"):
        trainer(tmp_path, train_dataset=rows)


def by_hand(model: Any, rows: list[dict]) -> torch.Tensor:
    """Summed log-probs of the answers, chosen minus rejected, each row by itself [B]."""
    differences = []
    for row in rows:
        sums = []
        for side in ("chosen", "rejected"):
            ids, labels = (torch.tensor(row[f"{side}_{part}"]) for part in ("input_ids", "labels"))
            logps = model.eval()(ids[None]).logits[0].float().log_softmax(-1)
            sums.append(sum(logps[at, token] for at, token in enumerate(ids[1:]) if labels[at + 1] != -100))
        differences.append(sums[0] - sums[1])
    return torch.stack(differences).detach()


def test_the_reference_is_not_the_policy_itself(tmp_path: Path) -> None:
    from peft import get_peft_model

    model = seeded()
    with pytest.raises(ValueError, match="ref_model is model: the reference would move"):
        trainer(tmp_path, model, model)
    with pytest.raises(ValueError, match=r"ref_model has trained weights of model \(.*lora_A"):
        trainer(tmp_path, model, model, peft_config=lora())
    base = seeded()
    with pytest.raises(ValueError, match=r"ref_model has trained weights of model \(.*lora_A"):
        trainer(tmp_path, get_peft_model(base, lora()), base)
    policy, reference = seeded(), seeded(seed=1)
    policy.transformer.wpe.weight = reference.transformer.wpe.weight
    with pytest.raises(ValueError, match=r"ref_model has trained weights of model \(transformer.wpe.weight"):
        trainer(tmp_path, policy, reference)
    with pytest.raises(ValueError, match="ref_model is model"):
        DPOTrainer(
            None, model, args=arguments(tmp_path), model_init=lambda: model, is_encoder_decoder=False,
            tokenizer=text_tools.tokenizer(), **SIZES,
        )  # fmt: skip


@pytest.mark.parametrize("adapter", [False, True])
def test_the_reference_of_model_init_is_a_copy(tmp_path: Path, adapter: bool) -> None:
    options = {"peft_config": lora()} if adapter else {}
    usual = trainer(tmp_path, **options)
    if adapter:
        usual = trainer(tmp_path, None, **options)  # the adapter is drawn after the model, from the same stream
    ours = DPOTrainer(
        args=arguments(tmp_path), model_init=lambda: seeded(dropout=0.5), is_encoder_decoder=False,
        train_dataset=preferences(), eval_dataset=preferences(), tokenizer=text_tools.tokenizer(), **SIZES, **options,
    )  # fmt: skip
    for one in (usual, ours):
        one.train()
    assert logged(ours, "loss")[0] == pytest.approx(0.6931472)
    assert logged(ours, "loss") == pytest.approx(logged(usual, "loss"), rel=1e-4)
    assert (ours.ref_model is None) is adapter
    assert logged(ours, "rewards/margins")[-1] > 0


def test_precomputed_log_probs_after_a_resumed_training(tmp_path: Path) -> None:
    config = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "per_device_eval_batch_size": 8}
    whole = trainer(tmp_path / "a", config=config)
    whole.train()
    ours = trainer(tmp_path / "b", config=config, precompute_ref_log_probs=True)
    ours.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    expected = 0.1 * (by_hand(ours.model, ours.eval_dataset) - by_hand(seeded(), ours.eval_dataset)).mean().item()
    assert expected > 0.1
    assert ours.evaluate()["eval_rewards/margins"] == pytest.approx(expected, rel=1e-4)
    assert whole.evaluate()["eval_rewards/margins"] == pytest.approx(expected, rel=1e-4)


def test_precomputed_log_probs_of_rows_that_come_later(tmp_path: Path) -> None:
    other = trainer(tmp_path, train_dataset=preferences(9)).train_dataset.select(range(6, 9))
    ours = trainer(tmp_path, precompute_ref_log_probs=True)
    ours.train()
    expected = 0.1 * (by_hand(ours.model, other) - by_hand(seeded(), other)).mean().item()
    assert expected > 0.1
    assert ours.evaluate(other)["eval_rewards/margins"] == pytest.approx(expected, rel=1e-4)


def test_means_of_an_evaluation_are_those_over_rows(tmp_path: Path) -> None:
    ours = trainer(tmp_path, ref_model=seeded(seed=1))  # six rows in batches of four and two
    margins = 0.1 * (by_hand(ours.model, ours.eval_dataset) - by_hand(ours.ref_model, ours.eval_dataset))
    found = ours.evaluate()
    assert margins.mean().item() != pytest.approx((margins[:4].mean() + margins[4:].mean()).item() / 2, rel=1e-2)
    assert found["eval_rewards/margins"] == pytest.approx(margins.mean().item(), rel=1e-4)
    assert found["eval_rewards/accuracies"] == pytest.approx((margins > 0).float().mean().item())
    assert found["eval_loss"] == pytest.approx(-torch.nn.functional.logsigmoid(margins).mean().item(), rel=1e-4)


def test_every_evaluation_has_its_own_keys(tmp_path: Path) -> None:
    sets = {"a": preferences(3), "b": preferences(8).select(range(3, 8))}
    ours = trainer(tmp_path, ref_model=seeded(seed=1), eval_dataset=sets)
    expected = {
        name: (0.1 * (by_hand(ours.model, rows) - by_hand(ours.ref_model, rows))).mean().item()
        for name, rows in ours.eval_dataset.items()
    }
    assert expected["a"] != pytest.approx(expected["b"], rel=0.1)
    predicted = ours.predict(ours.eval_dataset["a"]).metrics
    assert predicted["test_rewards/margins"] == pytest.approx(expected["a"], rel=1e-4)
    found = ours.evaluate()
    assert {name: found[f"eval_{name}_rewards/margins"] for name in sets} == pytest.approx(expected, rel=1e-4)
    assert "eval_rewards/margins" not in found
    held = ours.evaluate(ours.eval_dataset["b"], metric_key_prefix="held")
    assert held["held_rewards/margins"] == pytest.approx(expected["b"], rel=1e-4)
    assert not [name for name in held if not name.startswith(("held_", "epoch"))]
    assert logged(ours, "held_rewards/margins") == [held["held_rewards/margins"]]


def test_log_probs_of_bfloat16_weights_are_summed_in_float32(tmp_path: Path) -> None:
    ours = trainer(tmp_path, seeded().bfloat16(), seeded().bfloat16())
    with torch.no_grad():
        ours.model.transformer.wpe.weight.mul_(1.05)
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    _, metrics = ours.get_batch_loss_metrics(ours.model, batch)
    expected = 0.1 * (by_hand(ours.model, ours.train_dataset) - by_hand(ours.ref_model, ours.train_dataset))[:4].mean()
    assert metrics["rewards/margins"].item() == pytest.approx(expected.item(), abs=1e-4)
    assert {value.dtype for value in metrics.values()} == {torch.float32}


@pytest.mark.parametrize("model", ["gpt2", "t5"])
def test_answers_of_the_table_are_whole(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # decoding changes the prompt: a word is unknown, and the spaces are others
    rows = preferences().map(lambda row: {"prompt": f"  unheard   {row['prompt']}"})
    ours = trainer(tmp_path, seeded(model), generate_during_eval=True, eval_dataset=rows)
    tails = {}

    def generate(input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        answer = torch.tensor([[30, 31, 32]]).repeat(len(input_ids), 1)
        return answer if model == "t5" else torch.cat((input_ids, answer), dim=1)

    for one in (ours.model, ours.ref_model):
        monkeypatch.setattr(one, "generate", generate)
    log = ours.log
    monkeypatch.setattr(ours, "log", lambda logs, *rest: (tails.update(logs), log(logs, *rest)))
    ours.evaluate()
    assert [row[1:] for row in tails["game_log"].data] == [["w30 w31 w32"] * 2] * 4
    batch = ours.data_collator([ours.eval_dataset[0]])
    policy, _ = ours.get_batch_samples(ours.model, batch)
    assert policy[0].endswith("w30 w31 w32")
    assert (policy[0] == "w30 w31 w32") is (model == "t5")


@pytest.mark.parametrize("precomputed", [False, True])
def test_rows_of_texts_are_evaluated(tmp_path: Path, precomputed: bool) -> None:
    ours = trainer(tmp_path, ref_model=seeded(seed=1), precompute_ref_log_probs=precomputed)
    assert ours.evaluate(preferences())["eval_loss"] == pytest.approx(ours.evaluate()["eval_loss"], rel=1e-5)


def test_a_stream_of_pairs(tmp_path: Path) -> None:
    stream = preferences().to_iterable_dataset()
    with pytest.warns(UserWarning, match="dataset_num_proc=2 has no effect on a stream"):
        ours = trainer(tmp_path, train_dataset=stream, eval_dataset=None, dataset_num_proc=2)
    ours.train()
    assert logged(ours, "loss")[0] == pytest.approx(0.6931472)


@pytest.mark.parametrize("streamed", [("train",), ("eval",), ("train", "eval")])
def test_a_stream_beside_precomputed_log_probs(tmp_path: Path, streamed: tuple[str, ...]) -> None:
    """The reference is asked about each batch, as without precomputing."""
    stream = preferences().to_iterable_dataset()
    found = []
    for precomputed in (False, True):
        ours = trainer(
            tmp_path,
            ref_model=seeded(seed=1),
            config={"max_steps": 3},
            precompute_ref_log_probs=precomputed,
            **{f"{side}_dataset": stream for side in streamed},
        )
        with pytest.warns(UserWarning, match="no effect on a stream") if precomputed else nullcontext():
            ours.train()
            found.append([*logged(ours, "loss"), *logged(ours, "rewards/margins"), ours.evaluate()["eval_loss"]])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precomputed", [False, True])
def test_biases_that_train_beside_an_adapter_do_not_move_the_reference(tmp_path: Path, precomputed: bool) -> None:
    config = lora()
    config.bias = "all"
    ours = trainer(tmp_path, seeded("gpt2"), peft_config=config, precompute_ref_log_probs=precomputed,
                   config={"max_steps": 4, "learning_rate": 1e-1})  # fmt: skip
    batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
    before = ours.compute_reference_log_probs(batch)
    ours.train()
    policy = ours.concatenated_forward(ours.model, batch)[0]
    torch.testing.assert_close(ours.compute_reference_log_probs(batch), before)
    assert (policy - before[0]).abs().max() > 1e-2
