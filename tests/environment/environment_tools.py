"""A tokenizer with one token per byte, and a model that writes what a function of the text so far says."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trl_step.environment import TextEnvironment

PAD, EOS, BOS = 0, 1, 2
SPECIAL = {"<pad>": PAD, "</s>": EOS, "<s>": BOS}


def byte_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token per byte; with `bos` a text is tokenized with `<s>` in front, as Llama's is."""
    vocabulary = dict(SPECIAL)
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(character, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


class ScriptedModel(torch.nn.Module):
    """Writes `answer(text so far)`, token by token, as `generate` of transformers would.

    `prompts` holds the texts of each call. The decoder of an encoder-decoder model starts with the end token, as
    BART's does.
    """

    def __init__(self, answer: Callable[[str], str], tokenizer: Any, is_encoder_decoder: bool = False) -> None:
        super().__init__()
        self.answer = answer
        self.tokenizer = tokenizer
        self.is_encoder_decoder = is_encoder_decoder
        self.device = torch.device("cpu")
        self.generation_config = SimpleNamespace(eos_token_id=EOS)
        self.prompts: list[list[str]] = []
        self.calls: list[dict] = []

    def generate(self, input_ids, attention_mask, generation_config=None, **kwargs):
        if generation_config is not None:
            kwargs = generation_config.to_diff_dict() | kwargs
        self.calls.append(kwargs)
        pad_token_id, eos_token_id = kwargs["pad_token_id"], kwargs["eos_token_id"]
        texts = [self.tokenizer.decode(row[mask.bool()]) for row, mask in zip(input_ids, attention_mask, strict=True)]
        self.prompts.append(texts)
        scripts = [self.tokenizer(self.answer(text), add_special_tokens=False).input_ids for text in texts]
        ids = torch.full((len(texts), 1), EOS) if self.is_encoder_decoder else input_ids
        open_rows = torch.ones(len(texts), dtype=torch.bool)
        for step in range(kwargs.get("max_new_tokens", 30)):
            column = [script[step] if step < len(script) else EOS for script in scripts]
            ids = torch.cat((ids, torch.where(open_rows, torch.tensor(column), pad_token_id)[:, None]), dim=1)
            open_rows &= ~torch.isin(ids[:, -1], torch.tensor(eos_token_id))
            for criterion in kwargs.get("stopping_criteria", []):
                open_rows &= ~criterion(ids, None)
            if not open_rows.any():
                break
        return ids


def environment(answer: Callable[[str], str], **settings: Any) -> TextEnvironment:
    """An environment around a scripted model, with an `echo` tool."""
    tokenizer = byte_tokenizer()
    defaults = {
        "tools": {"echo": lambda text: text},
        "prompt": "",
        "reward_fn": lambda texts: [float(len(text)) for text in texts],
        "generation_kwargs": {"max_new_tokens": 60},
    }
    return TextEnvironment(ScriptedModel(answer, tokenizer), tokenizer, **(defaults | settings))


def in_turn(*answers: str) -> Callable[[str], str]:
    """The model's first, second, ... turn, counted by the replies in the text so far."""
    return lambda text: answers[min(text.count("<response>"), len(answers) - 1)]


def tiny_gpt2() -> GPT2LMHeadModel:
    """A real model for the byte tokenizer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_layer=1, n_embd=16, n_head=2, n_positions=256, bos_token_id=BOS, eos_token_id=EOS
    )
    return GPT2LMHeadModel(config).eval()


class Clock:
    """In place of the `time` of `side_by_side`: only what a test does takes time, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def go_on(self, seconds: float) -> None:
        self.now += seconds


def text_of(tokens: torch.Tensor) -> str:
    return byte_tokenizer().decode(tokens)
