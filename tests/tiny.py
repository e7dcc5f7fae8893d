"""Tiny models, a tiny tokenizer and a tiny batch, for every test that runs a whole step. Nothing needs a network."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.distributed.tensor import DTensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from trl_step import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
)

VOCABULARY = 60
PAD, EOS, BOS = 0, 1, 2
IDS = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": BOS}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCABULARY}


def tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Words w0 .. w59 for the ids 0 .. 59."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w3")),
        pad_token="w0",
        eos_token="w1",
        bos_token="w2",
        unk_token="w3",
        padding_side=padding_side,
    )


def gpt2(dropout: float = 0.0, layers: int = 2) -> GPT2LMHeadModel:
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=layers, n_head=2, n_positions=64, **rates, **IDS)
    )


def llama(dropout: float = 0.0) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(**SIZES, intermediate_size=64, max_position_embeddings=64, attention_dropout=dropout, **IDS)
    )


def gpt_neox(dropout: float = 0.0) -> GPTNeoXForCausalLM:
    rates = {"hidden_dropout": dropout, "attention_dropout": dropout}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=64, max_position_embeddings=64, **rates, **IDS))


def opt(dropout: float = 0.0) -> OPTForCausalLM:
    return OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32, dropout=dropout, **IDS)
    )


def t5(dropout: float = 0.0) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=dropout,
            decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS,
        )
    )  # fmt: skip


def bart(dropout: float = 0.0) -> BartForConditionalGeneration:
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
            dropout=dropout, decoder_start_token_id=EOS, forced_eos_token_id=None, **IDS,
        )
    )  # fmt: skip


CAUSAL = {"gpt2": gpt2, "llama": llama, "gpt_neox": gpt_neox, "opt": opt}
SEQ2SEQ = {"t5": t5, "bart": bart}


def with_value_head(name: str, dropout: float = 0.0, seed: int = 0, **kwargs: Any) -> Any:
    """A model by name, its weights drawn from `seed`; a value head that is not zero."""
    torch.manual_seed(seed)
    wrapper = AutoModelForSeq2SeqLMWithValueHead if name in SEQ2SEQ else AutoModelForCausalLMWithValueHead
    model = wrapper.from_pretrained((CAUSAL | SEQ2SEQ)[name](dropout), **kwargs)
    torch.nn.init.normal_(model.v_head.summary.weight, std=0.2)
    return model


def config(**options: Any) -> PPOConfig:
    """Eight samples in mini-batches of four, a learning rate that shows."""
    defaults = {"batch_size": 8, "mini_batch_size": 4, "learning_rate": 1e-3, "accelerator_kwargs": {"cpu": True}}
    return PPOConfig(**{**defaults, **options})


def trainer(model: Any = "gpt2", ref_model: Any = None, cls: type = PPOTrainer, **options: Any) -> PPOTrainer:
    """A trainer of a tiny model (by name, or ready made)."""
    model = with_value_head(model) if isinstance(model, str) else model
    return cls(config(**options), model, ref_model, tokenizer())


def batch(
    count: int = 8, seed: int = 1, seq2seq: bool = False
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
    """Ragged queries (3 to 8 tokens), responses (1 to 9 tokens) and scores; no special tokens inside."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> torch.Tensor:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(4, VOCABULARY, (length,), generator=generator)

    queries = [ids(3, 9) for _ in range(count)]
    responses = [ids(1, 10) for _ in range(count)]
    scores = torch.randn(count, generator=generator).tolist()
    return queries, responses, scores


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters; of a sharded model every process has to ask for them."""
    whole = ((n, p.full_tensor() if isinstance(p, DTensor) else p) for n, p in model.named_parameters())
    return {name: parameter.detach().clone() for name, parameter in whole}


class WatchedUpdates(PPOTrainer):
    """A trainer whose subclass sees every mini-batch's loss before its update, and may change it, in `_update`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch()

    def watch(self) -> None:
        """Put `_update` before the updater that the trainer has now."""
        self._updater.update = self._update  # type: ignore[method-assign]

    def _update(self, loss: torch.Tensor, stats: dict[str, torch.Tensor], mask: torch.Tensor) -> Any:
        return type(self._updater).update(self._updater, loss, stats, mask)
