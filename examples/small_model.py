"""A GPT-2 of a few hundred thousand weights over a handful of words, for examples that start from scratch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sentiment.building import build_folder
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

CACHE = Path(__file__).resolve().parents[1] / ".cache"
PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
WORDS = r"<\w+>|\d| ?[^\W\d]+|\s|[^\w\s]"
"""A token is a word in angle brackets, a digit, a word with the space before it, a space, or a punctuation mark."""
WORDS_AND_NUMBERS = r"\d+| ?[^\W\d]+|\s|[^\w\s]"
"""A token is a whole number, a word with the space before it, a space, or a punctuation mark."""


@dataclass(frozen=True)
class SmallModelSettings:
    """Size and training of the built-in model."""

    layers: int = 2
    """layers of the language model"""
    width: int = 128
    """width of the language model"""
    updates: int = 600
    """optimizer steps of its training on generated episodes"""
    batch: int = 64
    """episodes in each of them"""
    seed: int = 0
    """seed of the episodes and of the training"""


def word_tokenizer(texts: Iterable[str], pattern: str = WORDS) -> PreTrainedTokenizerFast:
    """A tokenizer of the words in `texts`, split by `pattern`; unknown words become `<unk>`."""
    splitter = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate([PAD, END, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def train_small_model(
    tokenizer: PreTrainedTokenizerFast, draw: Callable[[], str], settings: SmallModelSettings, context: int
) -> GPT2LMHeadModel:
    """A GPT-2 trained to continue the episodes that `draw` generates, of at most `context` tokens."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=context,
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
    rate = 2e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=settings.updates + 1, pct_start=0.1)
    model.train()
    progress = tqdm(range(settings.updates), desc="building the language model")
    for update in progress:
        rows = [torch.tensor(tokenizer(draw()).input_ids) for _ in range(settings.batch)]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = input_ids.masked_fill(input_ids == tokenizer.pad_token_id, -100)
        # padding follows the text, where no token sees it; said so, or transformers warns of it
        loss = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def build_once(cache: Path, settings: Any, sources: Iterable[Path], write: Callable[[Path], None]) -> Path:
    """The folder that `write(folder)` fills for `settings`, built if it does not exist yet.

    It is named after the settings and the source files, so a change of either builds it again. An interrupted build
    leaves nothing half done, see `building.build_folder`.
    """
    stamp = hashlib.sha256(json.dumps(asdict(settings)).encode())
    for source in (Path(__file__), *sources):
        stamp.update(source.read_bytes())

    def write_from_seed(temporary: Path) -> None:
        with torch.random.fork_rng(devices=[]):  # the caller's random stream is the same with and without a build
            torch.manual_seed(settings.seed)
            write(temporary)

    return build_folder(cache / stamp.hexdigest()[:12], write_from_seed)
