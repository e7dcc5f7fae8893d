"""What stands for names of transformers 4 and datasets 2 that nothing else stands for today."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

import torch


class AdamW(torch.optim.AdamW):
    """torch's AdamW with the defaults of transformers 4: no weight decay, an epsilon of 1e-6, a rate of 1e-3.

    transformers divided the epsilon by the root of the second bias correction, which made its first few hundred updates
    smaller where gradients are about as small as the epsilon.

    Raises:
        ValueError: `correct_bias` is off: torch has no Adam without the correction.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        no_deprecation_warning: bool = False,
    ) -> None:
        if not correct_bias:
            raise ValueError("correct_bias=False is not there: torch's AdamW corrects the bias; leave it out")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


class _Gone(type):
    """Of a class that no model has: nothing made of it, or changed in it, would have an effect."""

    def __call__(cls, *args: Any, **options: Any) -> NoReturn:
        raise TypeError(f"{_ONE_ATTENTION}: no model has an object of its own class for it")

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise TypeError(f"{_ONE_ATTENTION}: {name} must be changed there")


_ONE_ATTENTION = "the attention of transformers 5 is one class for each model, LlamaAttention and so on"


class KindOfAttention(metaclass=_Gone):
    """In place of `LlamaSdpaAttention`, `LlamaFlashAttention2` and their like, which packages import to change them.

    Raises:
        TypeError: on calls, and if an attribute is set.
    """


def _always(answer: bool, meaning: str) -> Callable[[], bool]:
    def ask() -> bool:
        return answer

    ask.__doc__ = meaning
    return ask


is_tf_available = _always(False, "Whether models of TensorFlow are there: transformers 5 has none.")
is_flax_available = _always(False, "Whether models of Flax are there: transformers 5 has none.")
is_ipex_available = _always(False, "Whether Intel's extension is used: torch has its parts today.")
is_jieba_available = _always(find_spec("jieba") is not None, "Whether jieba is installed.")
is_auto_gptq_available = _always(False, "Whether auto_gptq is used: transformers 5 uses gptqmodel.")
is_torch_sdpa_available = _always(True, "Whether torch has scaled_dot_product_attention.")
is_safetensors_available = _always(True, "Whether safetensors is installed, which transformers 5 requires.")
is_torch_fx_available = _always(True, "Whether torch has fx.")
is_torchdynamo_available = _always(True, "Whether torch can compile.")
is_torch_bf16_cpu_available = _always(True, "Whether a CPU computes in bfloat16.")


def _installed(module: str) -> Callable[[], bool]:
    def ask() -> bool:
        return importlib.util.find_spec(module) is not None

    ask.__doc__ = f"Whether {module} can be imported."
    return ask


is_liger_kernel_available = is_liger_available = _installed("liger_kernel")
is_llmblender_available = _installed("llm_blender")
is_openai_available = _installed("openai")
is_pil_available = _installed("PIL")
is_sklearn_available = _installed("sklearn")


def send_example_telemetry(*args: Any, **kwargs: Any) -> None:
    """Nothing is sent."""


def set_caching_enabled(boolean: bool) -> None:
    """Whether datasets keeps the results of `map` and others on disk."""
    import datasets

    (datasets.enable_caching if boolean else datasets.disable_caching)()


def build_inputs_with_special_tokens(
    tokenizer: Any, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
) -> list[int]:
    """Token ids of one text or of two, with the tokens that the tokenizer puts around and between texts."""
    words = ("a", *tokenizer.get_vocab())
    word = next(word for word in words if tokenizer(word, add_special_tokens=False)["input_ids"])
    encoded = tokenizer(*[word] * (1 if token_ids_1 is None else 2))
    waiting, built = {0: token_ids_0, 1: token_ids_1 or ()}, list[int]()
    for token, number in zip(encoded["input_ids"], encoded.sequence_ids(0), strict=True):
        # a text that was put in has no further token
        built += [token] if number is None else waiting.pop(number, ())
    return built
