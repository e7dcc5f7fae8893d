"""Shared by the four scripts: the source of model and posts, the format of a text, defaults for both sizes."""

from __future__ import annotations

import random
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import assets
import torch
from datasets import load_dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

from trl_step import get_kbit_device_map, set_seed

HUB_POSTS = "lvwerra/stack-exchange-paired"
Defaults = Mapping[str, tuple[Any, Any]]


def add_flags(parser: ArgumentParser, defaults: Defaults) -> None:
    """A flag per name with two defaults: that of a model from the hub, then that of the small one."""
    for name, (classic, small) in defaults.items():
        example = small if classic is None else classic
        kind = yes_or_no if isinstance(example, bool) else str if example is None else type(example)
        switch = {"nargs": "?", "const": True} if isinstance(example, bool) else {}
        parser.add_argument(f"--{name}", type=kind, help=f"{classic}; for the small model {small}", **switch)


def yes_or_no(word: str) -> bool:
    """The value of a switch on the command line."""
    if word.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(f"say True or False, not {word}")
    return word.lower() in ("true", "1", "yes")


def fill_in(args: Namespace, defaults: Defaults, small: bool) -> Namespace:
    """Give every flag that was not used its default, and seed all random streams."""
    for name, values in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, values[small])
    set_seed(args.seed)
    return args


def is_small(model: str) -> bool:
    """Whether to use the defaults for the small model: no name, or a model too narrow to be worth 8 bits."""
    return not model or AutoConfig.from_pretrained(model).get_text_config().hidden_size < 512


def load_posts(name: str, subset: str, small: bool, **options: Any) -> Any:
    """The posts of a subset such as "data/reward": from the hub or a folder, or the built ones."""
    source = str(assets.default_assets().posts) if small and name == HUB_POSTS else name
    return load_dataset(source, data_dir=subset, **{"split": "train", **options})


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model; if it has no padding token, its end-of-text token pads."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def loading(in_8bit: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained`: 8 bits on the accelerator of this process, or float32."""
    if not in_8bit:
        return {"dtype": torch.float32}
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": get_kbit_device_map()}


def new_scorer(name: str, **options: Any) -> Any:
    """A model with one score per text in place of the vocabulary; transformers' report that it is new is left out."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **options)
    finally:
        logging.set_verbosity(verbosity)


def prompt_of(question: str) -> str:
    """A question as the model sees it. The space before the answer belongs to the answer's first token."""
    return f"Question: {question}\n\nAnswer:"


def text_of(question: str, answer: str) -> str:
    """A question with its answer."""
    return f"{prompt_of(question)} {answer}"


@torch.no_grad()
def rewards_of(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 16) -> list[float]:
    """Score of each text under a reward model: its logit, before any sigmoid."""
    scores: list[float] = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(list(texts[start : start + batch_size]), padding=True, truncation=True, return_tensors="pt")
        scores += model(**tokens.to(model.device)).logits[:, 0].float().tolist()
    return scores


def sample_of(items: Sequence[Any], count: int, seed: int = 0) -> list[Any]:
    """`count` of the items, or all if there are fewer, the same ones for the same seed."""
    return random.Random(seed).sample(list(items), min(count, len(items)))
