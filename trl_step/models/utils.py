"""Chat formats: special tokens, template, and the resized embedding; models in wrappers, under TRL's names."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from trl_step.models.sharding import gathered


@dataclass
class ChatMlSpecialTokens:
    """The special tokens of ChatML, and the Jinja template that writes a conversation with them."""

    bos_token: str = "<|im_start|>"
    eos_token: str = "<|im_end|>"
    pad_token: str = "<|im_end|>"

    @property
    def system(self) -> str:
        """The beginning of a system message."""
        return f"{self.bos_token}system"

    @property
    def user(self) -> str:
        """The beginning of a user message."""
        return f"{self.bos_token}user"

    @property
    def assistant(self) -> str:
        """The beginning of an answer."""
        return f"{self.bos_token}assistant"

    @property
    def chat_template(self) -> str:
        """Jinja: one `<start>role\\ncontent<end>\\n` per message, then, if requested, the beginning of an answer."""
        message = f"{{{{ '{self.bos_token}' + message['role'] + '\n' + message['content'] + '{self.eos_token}\n' }}}}"
        prompt = f"{{{{ '{self.assistant}\n' }}}}"
        return (
            "{% for message in messages %}" + message + "{% endfor %}"
            "{% if add_generation_prompt %}" + prompt + "{% endif %}"
        )  # fmt: skip


FORMAT_MAPPING = {"chatml": ChatMlSpecialTokens}


def setup_chat_format(
    model: Any, tokenizer: Any, format: Literal["chatml"] = "chatml", resize_to_multiple_of: int | None = None
) -> tuple[Any, Any]:
    """Give a tokenizer the special tokens and the template of a chat format, and the model rows for the new tokens.

    Args:
        model: a transformers model; its embedding is resized, its generation config gets the new token ids.
        tokenizer: gets begin, end and padding token and `chat_template`.
        format: only "chatml" is supported.
        resize_to_multiple_of: round the number of embedding rows up to a multiple of this (64 suits GPUs).

    Returns:
        The two, changed in place.

    Raises:
        ValueError: the format is unknown.
    """
    if format not in FORMAT_MAPPING:
        raise ValueError(f"the chat format {format!r} is unknown: use one of {', '.join(FORMAT_MAPPING)}")
    tokens = FORMAT_MAPPING[format]()
    tokenizer.add_special_tokens(
        {"bos_token": tokens.bos_token, "eos_token": tokens.eos_token, "pad_token": tokens.pad_token}
    )
    tokenizer.chat_template = tokens.chat_template
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=resize_to_multiple_of)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


@contextmanager
def unwrap_model_for_generation(
    model: Any, accelerator: Any, is_peft_model: bool = False, gather_deepspeed3_params: bool = True
) -> Iterator[Any]:
    """The model in its parallel wrapper, inside with all of its weights on this process; every process enters.

    Args:
        model: as `accelerator.prepare` returned it.
        accelerator: that prepared it.
        is_peft_model: has no effect; the adapter stays active.
        gather_deepspeed3_params: False leaves weights sharded, so that all processes must run the same passes.
    """
    inner = accelerator.unwrap_model(model)
    if not gather_deepspeed3_params:
        yield inner
        return
    with gathered(inner):
        yield inner


def prepare_deepspeed(model: Any, accelerator: Any) -> Any:
    """A model that does not train, as an engine of DeepSpeed in eval mode.

    Its weights are partitioned if those of what `accelerator` trains are (ZeRO-3), else whole on every process.

    Raises:
        ImportError: the package deepspeed is missing.
        ValueError: `accelerator` does not train with DeepSpeed.
    """
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError("prepare_deepspeed needs the package deepspeed: pip install deepspeed") from error
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        raise ValueError("this accelerator does not train with DeepSpeed: start the script with accelerate launch, "
                         "with --use_deepspeed or a configuration that says so")  # fmt: skip
    settings = copy.deepcopy(plugin.deepspeed_config)
    zero = settings["zero_optimization"]
    sizes = getattr(model.config, "hidden_sizes", None) or [getattr(model.config, "hidden_size", None)]
    if zero["stage"] != 3:
        zero["stage"] = 0
    elif sizes[0] is not None:
        width = max(sizes)
        zero |= {
            "reduce_bucket_size": width * width,
            "stage3_param_persistence_threshold": 10 * width,
            "stage3_prefetch_bucket_size": int(0.9 * width * width),
        }
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    return engine.eval()


def prepare_fsdp(model: Any, accelerator: Any) -> Any:
    """A model that does not train, sharded as `accelerator` shards, in eval mode."""
    return accelerator.prepare_model(model, evaluation_mode=True).eval()
