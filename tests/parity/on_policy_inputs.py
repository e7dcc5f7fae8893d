"""What the recorded runs of on-policy trainers start from: tokenizer, weights, prompts and pinned completions.

The same code runs beside the old releases, to record, and beside this package, to replay. Every number comes from
NumPy's legacy random stream, which no release changes.
"""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

PAD, END, STOP, FIRST = 0, 1, 2, 3
"""`STOP` is the other stop token, of cases with `stop_token_id`; words start at `FIRST`."""
VOCABULARY = 24
TOKENS = 6
"""`response_length`."""
PROMPTS = 24
LENGTHS = [7, 2, 1, 6, 4, 5, 3, 7]
"""Tokens of a completion with its end token, in turn; 7 has none."""
COPIES = 4

IDS = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": END, "vocab_size": VOCABULARY}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Words w3 to w23, padded on the left, as generation wants."""
    words = {
        "<pad>": PAD,
        "<end>": END,
        "<stop>": STOP,
        **{f"w{number}": number for number in range(FIRST, VOCABULARY)},
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


# ---------------------------------------------------------------------------------------------------------------------
# models


def draw(model: torch.nn.Module, seed: int) -> Any:
    """Fill every parameter, each from a stream of its own name: the order of parameters does not matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stream = np.random.RandomState((zlib.crc32(today(name).encode()) + seed) % 2**32)
            noise = torch.from_numpy(stream.standard_normal(tuple(parameter.shape)).astype(np.float32))
            is_norm_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(is_norm_scale + (0.1 if parameter.dim() == 1 else 0.4) * noise)
    return model


def today(name: str) -> str:
    """The name that a parameter has in transformers 5."""
    return name.replace("embed_out.", "lm_head.")


def build(shape: str, kind: str, seed: int) -> Any:
    """A model of one layer of width 8; `shape` is gpt2 or gpt_neox, `kind` CausalLM or SequenceClassification."""
    if shape == "gpt2":
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config: Any = transformers.GPT2Config(
            n_embd=8, n_layer=1, n_head=2, n_inner=16, n_positions=16, num_labels=1, **rates, **IDS
        )
        name = "GPT2LMHeadModel" if kind == "CausalLM" else f"GPT2For{kind}"
    else:
        config = transformers.GPTNeoXConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, rotary_pct=0.5,
            max_position_embeddings=16, num_labels=1, hidden_dropout=0.0, attention_dropout=0.0, **IDS,
        )  # fmt: skip
        name = f"GPTNeoXFor{kind}"
    return draw(getattr(transformers, name)(config).eval(), seed)


def policy(shape: str) -> Any:
    """The model that is trained."""
    return build(shape, "CausalLM", 1)


def reference(shape: str) -> Any:
    """Another one, so that the KL term is not zero."""
    return build(shape, "CausalLM", 2)


def value_model(shape: str) -> Any:
    """One number per position."""
    return build(shape, "SequenceClassification", 3)


def reward_model(shape: str) -> Any:
    """One number per position; the trainers read it at the last token."""
    return build(shape, "SequenceClassification", 4)


def reward_function(texts: list[str]) -> list[float]:
    """A reward of the text alone: how many of its words have an even number, less a quarter of its length."""
    words = [[int(word[1:]) for word in text.split() if word.startswith("w")] for text in texts]
    return [sum(number % 2 == 0 for number in one) - 0.25 * len(one) for one in words]


# ---------------------------------------------------------------------------------------------------------------------
# prompts and completions


def prompts() -> list[list[int]]:
    """Token ids of `PROMPTS` prompts, 2 to 5 each, no two alike."""
    stream = np.random.RandomState(31)
    found = [stream.randint(FIRST, VOCABULARY, 2 + number % 4).tolist() for number in range(PROMPTS)]
    assert len({tuple(ids) for ids in found}) == PROMPTS
    return found


def completions(end: int = END) -> np.ndarray:
    """What would be sampled, int64 [PROMPTS, COPIES, TOKENS]: words, `end` where a completion ends, words after it."""
    stream = np.random.RandomState(32)
    words = stream.randint(FIRST, VOCABULARY, (PROMPTS, COPIES, TOKENS))
    for number in range(PROMPTS):
        for copy in range(COPIES):
            length = LENGTHS[(number + 3 * copy) % len(LENGTHS)]
            if length <= TOKENS:
                words[number, copy, length - 1] = end
    return words.astype(np.int64)


class PinnedSampling:
    """Gives each row of a batch the tokens of `completions`, one position after the other.

    The first row with a prompt gets its first copy, the next one its second, and so on; after `copies` rows it starts
    again.
    """

    def __init__(self, copies: int = 1, end: int = END) -> None:
        self.tokens = torch.from_numpy(completions(end))
        self.numbers = {tuple(ids): number for number, ids in enumerate(prompts())}
        self.copies = copies
        self.seen: Counter[int] = Counter()

    def prompt_numbers(self, queries: torch.Tensor) -> torch.Tensor:
        """Which prompt each row of `queries` [B, Q], padded, holds: int64 [B]."""
        return torch.tensor([self.numbers[tuple(id for id in row if id != PAD)] for row in queries.tolist()])

    def take(self, queries: torch.Tensor) -> torch.Tensor:
        """The completions of these rows, int64 [B, TOKENS]."""
        rows = []
        for number in self.prompt_numbers(queries).tolist():
            rows.append(self.tokens[number, self.seen[number] % self.copies])
            self.seen[number] += 1
        return torch.stack(rows)
