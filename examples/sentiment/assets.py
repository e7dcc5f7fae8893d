"""Builds what the sentiment example needs without a network, in about a minute on two cores.

    python examples/sentiment/assets.py     # builds them, prints the folders

Four ordinary Hugging Face folders, loaded with the calls that load a name from the hub:

    reviews/     film reviews with a label (`load_dataset`), splits "train" and "test"
    model/       a byte-level BPE tokenizer and a small GPT-2, both trained on the reviews (`from_pretrained`)
    classifier/  a small DistilBERT that distinguishes NEGATIVE and POSITIVE reviews (`pipeline("sentiment-analysis")`)

They are in a folder named after the source files and the settings that made them: a change of either builds them again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from building import build_folder
from corpus import GRAMMAR_FILE, Review, write_corpus
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).resolve().parents[2]
# a clone keeps beside the examples what it builds, an installed package in the user's cache
IN_CLONE = (ROOT / "setup.py").is_file()
DEFAULT_CACHE = ROOT / ".cache" / "sentiment" if IN_CLONE else Path("~/.cache/trl_step/sentiment").expanduser()
END_OF_TEXT = "<|endoftext|>"
IGNORED = -100  # the label that the loss of transformers' models ignores

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class AssetSettings:
    """Sizes of the built-in corpus and models."""

    train_reviews: int = 8000
    """Reviews in the split "train" """
    test_reviews: int = 500
    """Reviews in the split "test" """
    vocabulary: int = 2000
    """Maximum size of the vocabulary"""
    layers: int = 2
    """Layers of the language model"""
    width: int = 128
    """Width of the language model"""
    context: int = 64
    """Maximum tokens in a text"""
    model_updates: int = 600
    """Optimizer steps of the language model"""
    classifier_updates: int = 500
    """Optimizer steps of the classifier"""
    seed: int = 0
    """Seed of the corpus and of both trainings"""


class Assets(NamedTuple):
    """The folders; `folder` holds the others."""

    folder: Path
    reviews: Path
    model: Path
    classifier: Path


def find_assets(settings: AssetSettings, cache: Path = DEFAULT_CACHE) -> Assets:
    """The paths of the assets of these settings and this code, whether they are built or not."""
    stamp = hashlib.sha256(json.dumps(asdict(settings)).encode())
    for source in (Path(__file__), Path(__file__).with_name("corpus.py"), GRAMMAR_FILE):
        stamp.update(source.read_bytes())
    folder = cache / stamp.hexdigest()[:12]
    return Assets(folder, folder / "reviews", folder / "model", folder / "classifier")


def build_assets(settings: AssetSettings, cache: Path = DEFAULT_CACHE) -> Assets:
    """The assets of these settings, built if they do not exist yet.

    An interrupted build leaves nothing half done, see `building.build_folder`.
    """
    assets = find_assets(settings, cache)

    def write(temporary: Path) -> None:
        with torch.random.fork_rng(devices=[]):  # the caller's random stream is the same with and without a build
            torch.manual_seed(settings.seed)
            write_assets(settings, Assets(temporary, *(temporary / path.name for path in assets[1:])))

    build_folder(assets.folder, write)
    return assets


def write_assets(settings: AssetSettings, assets: Assets) -> None:
    """Fill the folders of `assets`."""
    reviews = write_corpus(settings.train_reviews + settings.test_reviews, settings.seed)
    train, test = reviews[: settings.train_reviews], reviews[settings.train_reviews :]
    write_reviews(assets.reviews / "train.jsonl", train)
    write_reviews(assets.reviews / "test.jsonl", test)

    tokenizer = train_tokenizer([review.text for review in train], settings)
    tokenizer.save_pretrained(assets.model)
    train_language_model(tokenizer, train, settings).save_pretrained(assets.model)

    marked = with_first_token(tokenizer)
    marked.save_pretrained(assets.classifier)
    train_classifier(marked, train, settings).save_pretrained(assets.classifier)


def write_reviews(file: Path, reviews: list[Review]) -> None:
    """One JSON object with `text` and `label` per line, which `load_dataset` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(review._asdict()) for review in reviews]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def train_tokenizer(texts: list[str], settings: AssetSettings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's: it encodes any text, and its end-of-text token pads."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bytes_and_end = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, bytes_and_end)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=2 * settings.context,
        clean_up_tokenization_spaces=False,
    )


def with_first_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer with an end-of-text token before every text: DistilBERT classifies by its first position."""
    marked = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    marked.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        special_tokens=[(END_OF_TEXT, tokenizer.eos_token_id)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=marked,
        cls_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def train_language_model(
    tokenizer: PreTrainedTokenizerFast, reviews: list[Review], settings: AssetSettings
) -> GPT2LMHeadModel:
    """A GPT-2 of the given depth and width, trained to continue reviews from their first token."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=2 * settings.context,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.loss_type = "ForCausalLM"  # transformers does not know it from the class's name, and says so
    rows = encode([review.text + END_OF_TEXT for review in reviews], tokenizer, settings.context)

    def batch_of(chosen: list[int]) -> Batch:
        input_ids = pad_sequence([rows[i] for i in chosen], batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = pad_sequence([rows[i] for i in chosen], batch_first=True, padding_value=IGNORED)
        # padding follows the text, where no token sees it; said so, or transformers warns of it
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}

    train(model, batch_of, len(rows), settings.model_updates, learning_rate=6e-3, title="language model")
    return model


def train_classifier(
    tokenizer: PreTrainedTokenizerFast, reviews: list[Review], settings: AssetSettings
) -> DistilBertForSequenceClassification:
    """A two-layer DistilBERT that predicts the verdict from the beginning of a review.

    It sees beginnings of every length, so that it is unsure (near 0.5) if nothing has been said yet.
    """
    model = DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=2 * settings.context,
            dim=64,
            hidden_dim=256,
            n_layers=2,
            n_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            id2label={0: "NEGATIVE", 1: "POSITIVE"},
            label2id={"NEGATIVE": 0, "POSITIVE": 1},
        )
    )
    rows = encode([review.text for review in reviews], tokenizer, settings.context)
    labels = torch.tensor([review.label for review in reviews])

    def batch_of(chosen: list[int]) -> Batch:
        lengths = torch.randint(4, settings.context + 1, (len(chosen),)).tolist()
        beginnings = [rows[i][:length] for i, length in zip(chosen, lengths, strict=True)]
        return {
            "input_ids": pad_sequence(beginnings, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in beginnings], batch_first=True),
            "labels": labels[chosen],
        }

    train(model, batch_of, len(rows), settings.classifier_updates, learning_rate=2e-3, title="classifier")
    return model


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> list[torch.Tensor]:
    """The first `length` tokens of each text, int64 [at most length]."""
    return [torch.tensor(ids) for ids in tokenizer(texts, truncation=True, max_length=length)["input_ids"]]


def train(
    model: nn.Module, batch_of: Callable[[list[int]], Batch], rows: int, updates: int, learning_rate: float, title: str
) -> None:
    """`updates` AdamW steps over shuffled batches of 32 rows; the rate rises for a tenth of them, then falls to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=updates + 1, pct_start=0.1)
    model.train()
    batches = shuffled(rows, batch_size=min(32, rows))
    progress = tqdm(range(updates), desc=f"building the {title}")
    for update in progress:
        loss = model(**batch_of(next(batches))).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def shuffled(rows: int, batch_size: int) -> Iterator[list[int]]:
    """Row numbers in batches, endlessly: a new random order in every round."""
    while True:
        yield from torch.randperm(rows)[: rows - rows % batch_size].view(-1, batch_size).tolist()


if __name__ == "__main__":
    for path in build_assets(AssetSettings()):
        print(path)
