"""Builds what the pipeline needs without a network: posts, a tokenizer and a small Llama.

    python examples/stack_llama/assets.py     # builds them in about a minute on two cores, prints the folders

    posts/   question-and-answer pairs with votes: `load_dataset(posts, data_dir="data/reward")`, and data/finetune,
             data/rl, data/evaluation, as the classic dataset on the hub has them
    llama/   a byte-level BPE tokenizer and a Llama of 0.7 million weights, trained on loose sentences of such posts

They are in a folder named after the source files and the settings that made them: a change of either builds them again.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from posts import Pair, write_pairs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from trl_step import SFTTrainer

sys.path.append(str(Path(__file__).resolve().parents[1]))
from sentiment.building import build_folder

DEFAULT_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "stack_llama"
SUBSETS = ("finetune", "reward", "rl", "evaluation")


@dataclass(frozen=True)
class AssetSettings:
    """Sizes of the posts and of the model."""

    pairs: int = 6000
    """Pairs in all subsets together; a tenth of them for evaluation"""
    vocabulary: int = 900
    """Maximum size of the vocabulary"""
    layers: int = 3
    """Layers of the Llama"""
    width: int = 128
    """Its width"""
    updates: int = 250
    """Optimizer steps of its pretraining"""
    seed: int = 0
    """Seed of posts and pretraining"""


class Assets(NamedTuple):
    """The folders; `folder` holds the others."""

    folder: Path
    posts: Path
    llama: Path


def build_assets(settings: AssetSettings, cache: Path = DEFAULT_CACHE) -> Assets:
    """The assets of these settings, built if they do not exist yet; an interrupted build leaves nothing."""
    stamp = hashlib.sha256(json.dumps(asdict(settings)).encode())
    for source in (Path(__file__), Path(__file__).with_name("posts.py")):
        stamp.update(source.read_bytes())
    folder = cache / stamp.hexdigest()[:12]
    assets = Assets(folder, folder / "posts", folder / "llama")
    build_folder(folder, lambda new: write_assets(settings, Assets(new, new / "posts", new / "llama")))
    return assets


def default_assets() -> Assets:
    """The model that the scripts use by default."""
    return build_assets(AssetSettings())


def write_assets(settings: AssetSettings, assets: Assets) -> None:
    """Fill the folders of `assets`."""
    pairs = write_pairs(settings.pairs, settings.seed)
    tenth = len(pairs) // 10
    bounds = (0, 3 * tenth, 7 * tenth, 9 * tenth, len(pairs))
    for subset, start, end in zip(SUBSETS, bounds, bounds[1:], strict=False):
        file = assets.posts / "data" / subset / "train.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in pairs[start:end]), encoding="utf-8")
    texts = loose_sentences(pairs[: bounds[3]], settings.seed)
    tokenizer = train_tokenizer(texts, settings)
    tokenizer.save_pretrained(assets.llama)
    pretrain(tokenizer, texts, settings).save_pretrained(assets.llama)


def loose_sentences(pairs: list[Pair], seed: int) -> list[str]:
    """Questions and answers in random order and without their format, as in the pretraining data of a base model."""
    texts = [text for pair in pairs for text in (pair.question, pair.response_j, pair.response_k)]
    random.Random(seed).shuffle(texts)
    return texts


def train_tokenizer(texts: list[str], settings: AssetSettings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Llama's special tokens and one for padding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [*texts, "Question: \n\nAnswer: "],
        trainers.BpeTrainer(
            vocab_size=settings.vocabulary,
            special_tokens=["<pad>", "</s>", "<s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", bos_token="<s>", model_max_length=256,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def pretrain(tokenizer: PreTrainedTokenizerFast, texts: list[str], settings: AssetSettings) -> LlamaForCausalLM:
    """A Llama of the given depth and width, trained to continue the texts."""
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=settings.width, intermediate_size=3 * settings.width,
            num_hidden_layers=settings.layers, num_attention_heads=4, max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            TrainingArguments(
                output_dir=folder, max_steps=settings.updates, per_device_train_batch_size=16, learning_rate=3e-3,
                lr_scheduler_type="cosine", warmup_steps=settings.updates // 20, report_to="none", save_strategy="no",
                logging_steps=50, seed=settings.seed, weight_decay=0.01,
                dataloader_pin_memory=torch.accelerator.is_available(),
            ),
            train_dataset=Dataset.from_dict({"text": texts}),
            processing_class=tokenizer,
            dataset_text_field="text",
            packing=True,
            max_seq_length=96,
        )  # fmt: skip
        trainer.train()
    return trainer.model.cpu()


if __name__ == "__main__":
    for path in default_assets():
        print(path)
