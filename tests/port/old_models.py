"""Small local models, tokenizers and data sets under the hub names that the test files of release 0.7.11 load."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
)

from tests import tiny_diffusion
from tests.models.families import small_config

GPT2_VOCABULARY, T5_VOCABULARY, LLAMA_VOCABULARY = 50257, 32128, 320
"""Those of the real models where a test writes ids by hand; of llama a multiple of 64, as the real one is."""
OWN = "trl-internal-testing"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
PLAIN = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
"""What transformers 4 took for a tokenizer of GPT-2 that has no template."""
LLAMA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ bos_token + '[INST] <<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ message['content'] + ' [/INST]' if not loop.first and messages[0]['role'] == 'system'"
    " else bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}


def byte_pairs(texts: Iterable[str], **special: str) -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, with a token for each frequent word of `texts`; "###" is one, whatever stands around
    it, as in that of the real model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("###", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=sorted(set(special.values())),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def words(count: int, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `count` words."""
    names = [*special.values(), *(f"word{i}" for i in range(count - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def gpt2(kind: Any = GPT2LMHeadModel, vocabulary: int = GPT2_VOCABULARY) -> Any:
    return kind(GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=5, n_head=4, n_positions=512, pad_token_id=1023))


def gpt_neox() -> Any:
    """Of the sizes that the tests count parameters by."""
    return AutoModelForCausalLM.from_config(
        GPTNeoXConfig(
            vocab_size=1024, hidden_size=32, num_hidden_layers=5, num_attention_heads=4, intermediate_size=37,
            max_position_embeddings=512,
        )
    )  # fmt: skip


def t5(kind: Any = T5ForConditionalGeneration, vocabulary: int = T5_VOCABULARY) -> Any:
    return kind(
        T5Config(vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
                 decoder_start_token_id=0)
    )  # fmt: skip


def causal(family: str) -> Callable[[], Any]:
    return lambda: AutoModelForCausalLM.from_config(small_config(family))


def seq2seq(family: str) -> Callable[[], Any]:
    return lambda: AutoModelForSeq2SeqLM.from_config(small_config(family))


MODELS: dict[str, Callable[[], Any]] = {
    f"{OWN}/dummy-GPT2-correct-vocab": gpt2,
    "gpt2": gpt2,
    f"{OWN}/tiny-random-GPT2LMHeadModel": gpt2,
    f"{OWN}/tiny-random-GPT2Model": lambda: gpt2(GPT2Model),
    f"{OWN}/tiny-T5ForConditionalGeneration-correct-vocab": t5,
    f"{OWN}/tiny-random-T5ForConditionalGeneration": lambda: t5(vocabulary=1100),
    f"{OWN}/tiny-random-T5Model": lambda: t5(T5Model, 1100),
    f"{OWN}/tiny-random-GPTNeoXForCausalLM": gpt_neox,
    f"{OWN}/tiny-random-GPTNeoXForCausalLM-safetensors": gpt_neox,
    f"{OWN}/tiny-random-GPTNeoXForCausalLM-safetensors-sharded": gpt_neox,
    f"{OWN}/tiny-random-CodeGenForCausalLM": causal("codegen"),
    f"{OWN}/tiny-random-CodeGenForCausalLM-sharded": causal("codegen"),
    f"{OWN}/tiny-random-GPTJForCausalLM": causal("gptj"),
    f"{OWN}/tiny-random-GPTNeoForCausalLM": causal("gpt_neo"),
    f"{OWN}/tiny-random-OPTForCausalLM": causal("opt"),
    f"{OWN}/tiny-random-BloomForCausalLM": causal("bloom"),
    f"{OWN}/tiny-BloomForCausalLM-correct-vocab": causal("bloom"),
    f"{OWN}/tiny-random-BartForConditionalGeneration": seq2seq("bart"),
    f"{OWN}/tiny-random-BigBirdPegasusForConditionalGeneration": seq2seq("bigbird_pegasus"),
    f"{OWN}/tiny-random-BlenderbotForConditionalGeneration": seq2seq("blenderbot"),
    f"{OWN}/tiny-random-BlenderbotSmallForConditionalGeneration": seq2seq("blenderbot-small"),
    f"{OWN}/tiny-random-FSMTForConditionalGeneration": seq2seq("fsmt"),
    f"{OWN}/tiny-random-LEDForConditionalGeneration": seq2seq("led"),
    f"{OWN}/tiny-random-LongT5ForConditionalGeneration": seq2seq("longt5"),
    f"{OWN}/tiny-random-M2M100ForConditionalGeneration": seq2seq("m2m_100"),
    f"{OWN}/tiny-random-MarianMTModel": seq2seq("marian"),
    f"{OWN}/tiny-random-MBartForConditionalGeneration": seq2seq("mbart"),
    f"{OWN}/tiny-random-MT5ForConditionalGeneration": seq2seq("mt5"),
    f"{OWN}/tiny-random-MvpForConditionalGeneration": seq2seq("mvp"),
    f"{OWN}/tiny-random-PegasusForConditionalGeneration": seq2seq("pegasus"),
    f"{OWN}/tiny-random-PegasusXForConditionalGeneration": seq2seq("pegasus_x"),
    f"{OWN}/tiny-random-PLBartForConditionalGeneration": seq2seq("plbart"),
    f"{OWN}/tiny-random-ProphetNetForConditionalGeneration": seq2seq("prophetnet"),
    f"{OWN}/tiny-random-SwitchTransformersForConditionalGeneration": seq2seq("switch_transformers"),
    "hf-internal-testing/tiny-random-MistralForCausalLM": lambda: MistralForCausalLM(
        MistralConfig(**SMALL, vocab_size=LLAMA_VOCABULARY, num_key_value_heads=2)
    ),
    "HuggingFaceM4/tiny-random-LlamaForCausalLM": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, vocab_size=GPT2_VOCABULARY, num_key_value_heads=2)
    ),
}  # fmt: skip

DATA: dict[str, list[dict[str, Any]]] = {
    "philschmid/trl-test-instruction": [{"prompt": "two and two", "completion": "four"}],
    "philschmid/dolly-15k-oai-style": [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]}
    ],
    "philschmid/guanaco-sharegpt-style": [{"conversations": [{"from": "human", "value": "hello"}]}],
}


def write_models(folder: Path, texts: Iterable[str]) -> None:
    """Write all of it into and below `folder`.

    Args:
        texts: what tokenizers learn their words from
    """
    texts = list(texts)
    of_gpt2 = byte_pairs(texts, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    of_gpt2.chat_template = PLAIN
    of_t5 = byte_pairs(texts, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    of_llama = byte_pairs(texts, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    of_llama.pad_token = "<unk>"
    tokenizers = {
        "gpt2": of_gpt2,
        "dummy-GPT2": of_gpt2,
        "T5For": of_t5,
        "BloomForCausalLM-correct": of_t5,
        "random-Llama": of_llama,
    }
    for number, (name, make) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = make()
        model.save_pretrained(folder / name, max_shard_size="20KB" if name.endswith("sharded") else "1GB")
        for part, tokenizer in tokenizers.items():
            if part in name:
                tokenizer.save_pretrained(folder / name)
    llama = words(LLAMA_VOCABULARY, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    llama.chat_template = LLAMA
    llama.save_pretrained(folder / "hf-internal-testing/llama-tokenizer")
    chatml = words(LLAMA_VOCABULARY, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<unk>")
    chatml.chat_template = CHATML
    chatml.save_pretrained(folder / "philschmid/gpt2-chatml-tokenizer")
    # attention only where 64 x 64 latents have become 16 x 16, which takes a fifth of the time
    blocks = {
        "block_out_channels": (4, 4, 8),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    }
    pipeline = tiny_diffusion.pipeline(unet_options={"sample_size": 64, **blocks}, length=77, width=32)
    pipeline.save_pretrained(folder / "hf-internal-testing/tiny-stable-diffusion-torch")
    for name, rows in DATA.items():
        (folder / name).mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "train.jsonl").write_text(lines, encoding="utf-8")
