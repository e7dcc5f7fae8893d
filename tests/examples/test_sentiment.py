"""The sentiment example from end to end, with a tiny corpus and two steps; and the parts that it stands on."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration, pipeline

from tests.examples.scripts import EXAMPLES, SENTIMENT, SENTIMENT_ASSETS

EXAMPLE = EXAMPLES / "sentiment"
MODULES = ("assets", "corpus", "ppo_sentiment", "report")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The example's files as modules, importable as they are for a script that lies beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield {name: __import__(name) for name in MODULES}
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def assets(example: dict[str, ModuleType], cache: Path):
    return example["assets"].build_assets(example["assets"].AssetSettings(**SENTIMENT_ASSETS), cache)


def run(example: dict[str, ModuleType], cache: Path, output: Path, *options: str) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        words = [*SENTIMENT, f"--cache_dir={cache}", f"--output_dir={output}", *options]
        patch.setattr(sys, "argv", ["ppo_sentiment.py", *words])
        example["ppo_sentiment"].main()
    return json.loads((output / "summary.json").read_text())


# --- the corpus ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reviews(example: dict[str, ModuleType]):
    return example["corpus"].write_corpus(1500, seed=3)


def test_the_same_seed_writes_the_same_reviews(example, reviews) -> None:
    assert example["corpus"].write_corpus(50, seed=3) == reviews[:50]
    assert example["corpus"].write_corpus(50, seed=4) != reviews[:50]


def test_a_review_that_comes_twice_is_left_out(example, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = example["corpus"]
    drawn = iter([corpus.Review(text, 1) for text in ("one", "two", "one", "two", "three")])
    monkeypatch.setattr(corpus, "write_review", lambda *_: next(drawn))
    assert [review.text for review in corpus.write_corpus(3, seed=0)] == ["one", "two", "three"]


def test_reviews_are_varied_and_balanced(reviews) -> None:
    assert len({review.text for review in reviews}) == len(reviews)
    assert all(len(review.text) >= 200 for review in reviews)
    sentences = {s for review in reviews for s in re.split(r"(?<=[.!]) ", review.text)}
    assert len(sentences) > 4000
    assert 0.45 < sum(review.label for review in reviews) / len(reviews) < 0.55


def test_reviews_are_written_out(reviews) -> None:
    for text, _ in reviews:
        assert not re.search(r"[{}()|\[\]]|  | [.,!]", text), text
        assert not re.search(r"\b[Aa] ([aeiou]|honest)|\b[Aa]n (?!honest)[^aeiou]", text), text
        assert all(sentence[0].isupper() for sentence in re.split(r"(?<=[.!]) ", text)), text


def test_the_words_agree_with_the_label(reviews) -> None:
    for text, label in reviews:
        assert ("Highly recommended!" in text) <= (label == 1)
        assert ("Avoid it!" in text) <= (label == 0)


# --- the assets ------------------------------------------------------------------------------------------------------


def test_assets_load_as_names_from_the_hub_do(assets) -> None:
    for split, number in (("train", 40), ("test", 8)):
        loaded = datasets.load_dataset(str(assets.reviews), split=split)
        assert loaded.num_rows == number
        assert loaded.column_names == ["text", "label"]
    tokenizer = AutoTokenizer.from_pretrained(assets.model)
    text = "What an elegant film! Čeština, 映画."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id is not None
    model = AutoModelForCausalLM.from_pretrained(assets.model)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.resid_pdrop == model.config.attn_pdrop == model.config.embd_pdrop == 0
    classify = pipeline("sentiment-analysis", model=str(assets.classifier), device="cpu")
    assert {entry["label"] for entry in classify("A film.", top_k=None)} == {"NEGATIVE", "POSITIVE"}


def test_the_classifier_does_not_see_its_batch_mates(assets) -> None:
    classify = pipeline("sentiment-analysis", model=str(assets.classifier), device="cpu")
    texts = ["What a film!", "This film tells the story of the ghost, who plans one last robbery."]
    together = classify(texts, batch_size=2)
    assert [entry["score"] for entry in together] == pytest.approx([classify(text)[0]["score"] for text in texts])


def test_assets_are_built_once(example, assets, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example["assets"]
    monkeypatch.setattr(module, "write_assets", lambda *_: pytest.fail("built again"))
    assert module.build_assets(module.AssetSettings(**SENTIMENT_ASSETS), cache) == assets
    assert [path.name for path in cache.iterdir()] == [assets.folder.name]


def test_other_settings_and_other_code_have_another_folder(example, assets, cache: Path, tmp_path: Path) -> None:
    module = example["assets"]
    assert module.find_assets(module.AssetSettings(**SENTIMENT_ASSETS, seed=1), cache).folder != assets.folder
    grammar = tmp_path / "reviews.grammar"
    grammar.write_bytes(module.GRAMMAR_FILE.read_bytes() + b"\n# changed\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "GRAMMAR_FILE", grammar)
        assert module.find_assets(module.AssetSettings(**SENTIMENT_ASSETS), cache).folder != assets.folder


def test_a_build_that_breaks_off_leaves_nothing(example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example["assets"]

    def half(settings, made) -> None:
        made.model.mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_assets", half)
    with pytest.raises(KeyboardInterrupt):
        module.build_assets(module.AssetSettings(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builds_at_once_the_first_stays(example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example["assets"]
    settings = module.AssetSettings()

    def overtaken(_, made) -> None:
        (made.folder / "second").touch()
        first = module.find_assets(settings, tmp_path).folder
        first.mkdir()
        (first / "first").touch()

    monkeypatch.setattr(module, "write_assets", overtaken)
    built = module.build_assets(settings, tmp_path)
    assert [path.name for path in built.folder.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [built.folder]


def test_a_build_leaves_the_random_stream_alone(example, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    example["assets"].build_assets(example["assets"].AssetSettings(**SENTIMENT_ASSETS, seed=2), tmp_path)
    assert torch.equal(torch.rand(3), expected)


# --- the script ------------------------------------------------------------------------------------------------------


def test_a_short_run(example, assets, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(example, cache, tmp_path, "--seed=7")
    lines = capsys.readouterr().out.rstrip("\n").splitlines()

    assert set(summary) >= {"reward_first", "reward_last", "kl_last", "seconds", "steps", "seed"}
    assert 0 <= summary["reward_first"] <= 1
    assert 0 <= summary["reward_last"] <= 1
    assert summary["steps"] == 2
    assert summary["seed"] == 7
    assert summary["held_out"] == 4
    first, last, seconds = (summary[key] for key in ("reward_first", "reward_last", "seconds"))
    assert lines[-1] == f"mean probability of a positive review: {first:.3f} -> {last:.3f} ({seconds:.0f} s)"
    assert any("response before" in line for line in lines)

    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    trained_from = AutoModelForCausalLM.from_pretrained(assets.model)
    assert not torch.equal(tuned.transformer.wte.weight, trained_from.transformer.wte.weight)


def test_the_same_seed_gives_the_same_numbers(example, cache: Path, tmp_path: Path) -> None:
    runs = [run(example, cache, tmp_path / name, "--log_with=None") for name in ("a", "b")]
    for key in ("reward_first", "reward_last", "kl_last"):
        assert runs[0][key] == runs[1][key]


def test_a_run_in_two_parts_gives_the_same_numbers(example, cache: Path, tmp_path: Path) -> None:
    whole = run(example, cache, tmp_path / "whole", "--log_with=None")
    with pytest.MonkeyPatch.context() as patch:  # stopped before the second step
        step = example["ppo_sentiment"].PPOTrainer.step
        patch.setattr(
            example["ppo_sentiment"].PPOTrainer,
            "step",
            lambda trainer, *batch: signal.raise_signal(signal.SIGINT) if trainer.steps_done else step(trainer, *batch),
        )
        with pytest.raises(KeyboardInterrupt):
            run(example, cache, tmp_path / "parts", "--log_with=None", "--save_every=1", "--resume_from=latest")
    assert [path.name for path in (tmp_path / "parts" / "states").iterdir()] == ["step-00000001"]
    parts = run(example, cache, tmp_path / "parts", "--log_with=None", "--save_every=1", "--resume_from=latest")
    assert {**parts, "seconds": 0} == {**whole, "seconds": 0}
    assert len((tmp_path / "parts" / "history.jsonl").read_text().splitlines()) == 2


def test_lora(example, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run(example, cache, tmp_path, "--use_peft", "--log_with=None")
    assert (tmp_path / "model" / "adapter_config.json").exists()


@pytest.mark.parametrize("options", [["--use_peft", "--advantage_estimator=rloo"], ["--advantage_estimator=grpo"]])
def test_groups_without_a_value_head(example, cache: Path, tmp_path: Path, options: list[str]) -> None:
    run(example, cache, tmp_path, "--answers_per_query=2", "--log_with=None", *options)
    files = {file.name for file in (tmp_path / "model").iterdir()}
    assert ("adapter_config.json" in files) == ("--use_peft" in options)
    assert ("model.safetensors" in files) != ("--use_peft" in options)


def test_several_answers_to_a_query_stand_together(example) -> None:
    several = example["ppo_sentiment"].several
    assert several({"a": [1, 2, 3, 4, 5]}, 2) == {"a": [1, 1, 2, 2]}
    assert several({"a": [1, 2, 3]}, 1) == {"a": [1, 2, 3]}


def test_an_encoder_decoder_of_ones_own(example, assets, cache: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(assets.model)
    tiny = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
                    pad_token_id=0, eos_token_id=0, decoder_start_token_id=0)  # fmt: skip
    T5ForConditionalGeneration(tiny).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    run(example, cache, tmp_path / "out", "--use_seq2seq", f"--model_name={tmp_path / 't5'}", "--log_with=None")
    assert T5ForConditionalGeneration.from_pretrained(tmp_path / "out" / "model").config.d_model == 16


def test_more_steps_than_one_pass_over_the_data(example) -> None:
    class Trainer:
        dataloader = ("a", "b", "c")
        steps_done = 0

        class config:
            total_ppo_epochs = 7

    assert "".join(example["ppo_sentiment"].batches(Trainer)) == "abcabca"


def test_queries_are_beginnings_of_reviews_and_stay_the_same(
    example, assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = example["ppo_sentiment"]
    tokenizer = AutoTokenizer.from_pretrained(assets.model)
    texts = datasets.load_dataset(str(assets.reviews), split="test")["text"]
    first = script.collate(script.load_queries(str(assets.reviews), "test", tokenizer, 8))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # or the first result would be found there
    second = script.collate(script.load_queries(str(assets.reviews), "test", tokenizer, 8))
    assert first["query"] == second["query"]
    assert len({len(ids) for ids in first["input_ids"]}) > 1
    for ids, query in zip(first["input_ids"], first["query"], strict=True):
        assert 2 <= len(ids) <= 8
        assert ids.dtype == torch.int64
        assert any(text.startswith(query) for text in texts)


def test_the_classic_command_has_the_classic_settings(example) -> None:
    words = "--model_name lvwerra/gpt2-imdb --query_dataset stanfordnlp/imdb"
    words += " --reward_model sentiment-analysis:lvwerra/distilbert-imdb"
    config = example["ppo_sentiment"].read_arguments(words.split()).ppo
    assert (config.model_name, config.query_dataset) == ("lvwerra/gpt2-imdb", "stanfordnlp/imdb")
    assert config.reward_model == "sentiment-analysis:lvwerra/distilbert-imdb"
    assert (config.learning_rate, config.batch_size, config.mini_batch_size) == (1.41e-5, 128, 128)


def test_the_built_in_settings_can_be_overridden(example) -> None:
    read = example["ppo_sentiment"].read_arguments
    assert read([]).ppo.learning_rate == example["ppo_sentiment"].BUILT_IN_SETTINGS["learning_rate"]
    assert read(["--learning-rate", "1e-3", "--use_seq2seq"]).ppo.learning_rate == 1e-3


def test_a_folder_of_ones_own_may_contain_the_word_built_in(example, cache: Path, tmp_path: Path) -> None:
    words = [*SENTIMENT, f"--cache_dir={cache}", f"--output_dir={tmp_path}", "--query_dataset=/data/built-in/imdb"]
    arguments = example["ppo_sentiment"].read_arguments(words)
    example["ppo_sentiment"].prepare(arguments)
    assert arguments.ppo.query_dataset == "/data/built-in/imdb"
    assert Path(arguments.ppo.model_name).is_dir()


def test_a_reward_model_without_its_task_is_refused(example) -> None:
    with pytest.raises(ValueError, match="task:model"):
        example["ppo_sentiment"].RewardModel("lvwerra/distilbert-imdb", torch.device("cpu"))


def test_a_missing_package_is_named_before_any_work(example) -> None:
    with pytest.raises(ImportError, match="pip install no_such_package"):
        example["report"].check_packages("rich", "no_such_package")
