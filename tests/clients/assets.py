"""Small models, data sets and tools of the names that the clients load, as folders in a working directory.

A path that exists is never looked up on a hub, so that the programs run as they stand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.markdown_pages import byte_tokenizer

CHAT = """{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

GPT2 = (
    "gpt2", "lvwerra/gpt2-imdb", "lvwerra/gpt2-imdb-pos-v2", "edbeeching/gpt-neo-125M-imdb",
    "edbeeching/gpt-neo-1.3B-imdb", "edbeeching/gpt-neo-125M-imdb-lora-adapter-merged",
    "ybelkada/gpt-j-6b-sharded-bf16", "ybelkada/gpt-j-6b-detox", "ybelkada/gpt-j-6b-detoxs",
    "ybelkada/gpt-neo-125m-detox", "ybelkada/gpt-neo-2.7B-detox", "EleutherAI/gpt-neo-125M", "EleutherAI/gpt-neo-2.7B",
    "bigcode/starcoderbase",
)  # fmt: skip
GPT_NEOX = ("EleutherAI/gpt-neox-20b", "EleutherAI/pythia-160m")
LLAMA = ("huggyllama/llama-7b", "meta-llama/Llama-2-7b-hf", "facebook/opt-350m", "facebook/opt-125m", "llama")
T5 = ("lvwerra/t5-imdb", "google/flan-t5-small")
SENTIMENT = ("lvwerra/distilbert-imdb",)
TOXICITY = ("facebook/roberta-hate-speech-dynabench-r4-target",)

TOOL = """
from transformers import Tool


class Answering(Tool):
    name = "answering"
    description = "answers"

    def __call__(self, query):
        return "3"
"""
METRIC = """
import datasets
import evaluate


class Metric(evaluate.Metric):
    def _info(self):
        features = {{"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(features))

    def _compute(self, predictions, references=None):
        return {result}
"""
TOOLS = ("ybelkada/simple-calculator", "lvwerra/python-interpreter", "vwxyzjn/pyserini-wikipedia-kilt-doc")


def write_assets() -> None:
    """All of them, in the working directory."""
    torch.manual_seed(0)
    ids = {"vocab_size": len(byte_tokenizer()), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    # weights in 4 bits have blocks of 64
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 2048}
    without_pad = {key: value for key, value in ids.items() if key != "pad_token_id"}
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    causal_llama = LlamaForCausalLM(LlamaConfig(**sizes, **ids))
    _save(GPT2, GPT2LMHeadModel(GPT2Config(**gpt2, **without_pad)), pad=None)
    _save(GPT_NEOX, GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, **without_pad)), pad=None)
    _save(LLAMA, causal_llama)
    t5 = T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
                  vocab_size=ids["vocab_size"], pad_token_id=0, eos_token_id=1)  # fmt: skip
    _save(T5, T5ForConditionalGeneration(t5))
    distilbert = DistilBertConfig(
        vocab_size=ids["vocab_size"], dim=32, n_layers=1, n_heads=2, hidden_dim=64, id2label=labels
    )
    _save(SENTIMENT, DistilBertForSequenceClassification(distilbert))
    # its tokenizer adds special tokens of its own
    roberta = RobertaConfig(**sizes, **{**ids, "vocab_size": ids["vocab_size"] + 16}, max_position_embeddings=600)
    _save(TOXICITY, RobertaForSequenceClassification(roberta))
    _save(("reward-gpt2",), GPT2ForSequenceClassification(GPT2Config(**gpt2, **ids, num_labels=1)))
    _save(("reward-llama",), LlamaForSequenceClassification(LlamaConfig(**sizes, **ids, num_labels=1)))
    judge = AutoModelForSequenceClassification.from_pretrained("huggyllama/llama-7b", num_labels=2)
    adapter = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"])
    get_peft_model(judge, adapter).save_pretrained("trl-lib/llama-7b-hh-rm-adapter")
    get_peft_model(causal_llama, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained("adapter")
    _metric("accuracy", '{"accuracy": sum(p == r for p, r in zip(predictions, references)) / len(predictions)}')
    for name in TOOLS:
        _write(f"{name}/tool_config.json", json.dumps({"tool_class": "answering.Answering"}))
        _write(f"{name}/answering.py", TOOL)
    for name, config in CONFIGURATIONS.items():
        files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in config[1])
        _write(f"{name}/README.md", f"---\nconfigs:\n- config_name: {config[0]}\n  data_files:\n{files}---\n")
    for name, rows in DATA.items():
        _write(f"{name}.jsonl", "\n".join(map(json.dumps, rows)))


def _metric(name: str, result: str) -> None:
    """A metric of evaluate that computes `result` from `predictions`."""
    _write(f"{name}/{Path(name).name}.py", METRIC.format(result=result))


def _save(names: Sequence[str], model: Any, pad: str | None = "<pad>") -> None:
    tokenizer = byte_tokenizer(pad_token=pad, bos_token="<|endoftext|>")
    tokenizer.chat_template = CHAT
    for name in names:
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


# --- data sets ---------------------------------------------------------------------------------------------------

FILM = "The film number {0} was well worth seeing, and I would see it again with my friends. " * 8
COUNT = 24


def _said(i: int, good: bool) -> list[dict[str, str]]:
    answer = f"Take bus {i}." if good else "No."
    return [{"role": "user", "content": f"How do I get to {i}?"}, {"role": "assistant", "content": answer}]


REVIEWS = [{"text": FILM.format(i), "label": i % 2} for i in range(COUNT)]
PAIRED_TEXTS = [
    {"chosen": f"\n\nHuman: How is {i}?\n\nAssistant: {i} is fine.",
     "rejected": f"\n\nHuman: How is {i}?\n\nAssistant: No."}
    for i in range(800)  # some scripts take one per cent
]  # fmt: skip
PAIRED_CHATS = [
    {"prompt": f"How do I get to {i}?", "chosen": _said(i, True), "rejected": _said(i, False),
     "messages": _said(i, True)}
    for i in range(COUNT)
]  # fmt: skip
STACK = [
    {"qid": i, "question": f"How do I print {i} in a loop?", "date": "", "metadata": [], "response_j": f"print({i})",
     "response_k": "I do not know."}
    for i in range(COUNT)
]  # fmt: skip
TOXIC = [
    {"prompt": {"text": f"It is number {i}, and", "toxicity": 0.5}, "continuation": {"text": "so on", "toxicity": 0.5}}
    for i in range(COUNT)
]
SUMMARIES = [
    {"info": {"post": f"I have {i} cats.", "article": None}, "summaries": [{"text": "Cats."}, {"text": "Dogs."}],
     "choice": 0}
    for i in range(COUNT)
]  # fmt: skip
QUESTIONS = [{"question": f"What is {i} + 1?", "answer": f"It is #### {i + 1}"} for i in range(COUNT)]
TRIVIA = [
    {"question": f"What follows {i}?", "answer": {"normalized_aliases": [str(i + 1)], "aliases": [str(i + 1)]}}
    for i in range(COUNT)
]
PROMPTS = [{"prompt": f"Number {i} is", "query": f"Number {i} is"} for i in range(COUNT)]
TLDR = [
    {"messages": _said(i, True), "prompt": f"How do I get to {i}?", "completion": f"Take bus {i}.", "label": i % 2 == 0}
    for i in range(COUNT)
]
PROBLEMS = [{"prompt": 'def add(a, b):\n    """The sum."""\n', "canonical_solution": "    return a + b\n"}]
INSTRUCTIONS = [{"instruction": f"Name number {i}.", "input": "", "output": str(i)} for i in range(COUNT)]

DATA: dict[str, list[dict[str, Any]]] = {
    "imdb/train": REVIEWS,
    "stanfordnlp/imdb/train": REVIEWS,
    "imdb/test": REVIEWS,
    "stanfordnlp/imdb/test": REVIEWS,
    "Anthropic/hh-rlhf/train": PAIRED_TEXTS,
    "Anthropic/hh-rlhf/test": PAIRED_TEXTS[:COUNT],
    "trl-internal-testing/hh-rlhf-helpful-base-trl-style/train": PAIRED_CHATS,
    "trl-internal-testing/hh-rlhf-helpful-base-trl-style/test": PAIRED_CHATS,
    "trl-internal-testing/tldr-preference-sft-trl-style/train": TLDR,
    "trl-internal-testing/tldr-preference-sft-trl-style/validation": TLDR,
    "trl-internal-testing/descriptiveness-sentiment-trl-style/descriptiveness": PROMPTS,
    "trl-lib/kto-mix-14k/train": TLDR,
    "trl-lib/kto-mix-14k/test": TLDR,
    "timdettmers/openassistant-guanaco/train": REVIEWS,
    "timdettmers/openassistant-guanaco/test": REVIEWS,
    "allenai/real-toxicity-prompts/train": TOXIC,
    "openai/summarize_from_feedback/train": SUMMARIES,
    "openai/summarize_from_feedback/validation": SUMMARIES,
    "openai/gsm8k/train": QUESTIONS,
    "openai/gsm8k/test": QUESTIONS,
    "gsm8k/train": QUESTIONS,
    "gsm8k/test": QUESTIONS,
    "trivia_qa/train": TRIVIA,
    "mandarjoshi/trivia_qa/train": TRIVIA,
    "instructions/train": INSTRUCTIONS,
    "openai_humaneval/test": PROBLEMS,
    **{f"ultrafeedback/{split}": PAIRED_CHATS for split in ("train_prefs", "test_prefs", "train_sft", "test_sft")},
    **{
        f"lvwerra/stack-exchange-paired/data/{part}/train": STACK for part in ("rl", "reward", "evaluation", "finetune")
    },
}

CONFIGURATIONS = {
    "gsm8k": ("main", ("train", "test")),
    "openai/gsm8k": ("main", ("train", "test")),
    "trivia_qa": ("rc", ("train",)),
    "mandarjoshi/trivia_qa": ("rc", ("train",)),
    "openai/summarize_from_feedback": ("comparisons", ("train", "validation")),
    "trl-internal-testing/descriptiveness-sentiment-trl-style": ("default", ("descriptiveness",)),
    "ultrafeedback": ("default", ("train_prefs", "test_prefs", "train_sft", "test_sft")),
}
"""Data sets that are loaded by the name of a part, and its splits."""
