"""Layer 1: masked statistics, log-prob and entropy helpers, dictionary helpers, seeds.

The names are those of release 0.7; scripts import them from `trl_step.core`.
Masks are 1 (or True) where an element counts.
"""

from __future__ import annotations

import functools
import gc
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

WANDB_PADDING = -1
WHITEN_EPSILON = 1e-8

Function = TypeVar("Function", bound=Callable[..., Any])

ReduceSum = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all processes; in a single process it returns the tensor."""


def keep(tensor: torch.Tensor) -> torch.Tensor:
    """The `ReduceSum` of a single process."""
    return tensor


def sum_over_processes(accelerator: Any) -> ReduceSum:
    """The `ReduceSum` of `accelerator`'s processes; `keep` for None or a single process."""
    return accelerator.reduce if getattr(accelerator, "use_distributed", False) else keep


# --- precision -----------------------------------------------------------------------------------------------

WITHOUT_FLOAT64 = ("mps",)
"""Kinds of devices that have no float64."""
to_host = torch.Tensor.cpu


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` as float64, on its device, or on the CPU if that kind of device has no such numbers."""
    return (to_host(tensor) if tensor.device.type in WITHOUT_FLOAT64 else tensor).double()


# --- masked statistics ---------------------------------------------------------------------------------------


def masked_mean(values: torch.Tensor, mask: torch.Tensor, axis: int | None = None) -> torch.Tensor:
    """Mean of `values` where `mask` is 1, over all elements or along `axis`.

    Args:
        values: any shape, floating point.
        mask: same shape, 1 where an element counts.
        axis: dimension to average along; None averages over all of them.
    """
    weights = mask.to(values.dtype)
    if axis is None:
        return (values * weights).sum() / weights.sum()
    return (values * weights).sum(dim=axis) / weights.sum(dim=axis)


def count_mean_squares(
    values: torch.Tensor, mask: torch.Tensor | None = None, reduce_sum: ReduceSum = keep
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How many values count, their mean, and the sum of their squared distances from it: three 0-d tensors.

    Two passes, as the variance of large numbers needs; over all processes that `reduce_sum` spans. An empty mask gives
    three zeros.

    Args:
        values: any shape, floating point.
        mask: same shape, 1 where an element counts; None: all of them count.
    """
    weights = torch.ones_like(values) if mask is None else mask.to(values.dtype)
    total, count = reduce_sum(torch.stack(((values * weights).sum(), weights.sum())))
    mean = total / count.clamp(min=1)
    return count, mean, reduce_sum((((values - mean) ** 2) * weights).sum())


def masked_moments(
    values: torch.Tensor, mask: torch.Tensor, unbiased: bool = True, reduce_sum: ReduceSum = keep
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (0-d) of `values` where `mask` is 1, over all processes that `reduce_sum` spans.

    The variance of one element is 0, and an empty mask gives mean 0 and variance 0: neither can turn a running
    statistic into NaN.
    """
    count, mean, squares = count_mean_squares(values, mask, reduce_sum)
    return mean, squares / (count - 1 if unbiased else count).clamp(min=1)


def masked_var(values: torch.Tensor, mask: torch.Tensor, unbiased: bool = True) -> torch.Tensor:
    """Variance (0-d) of `values` where `mask` is 1, two tensors of one shape; `unbiased` divides by n - 1.

    The variance of a single element is 0.  # differs from v0.7: it was NaN

    Raises:
        ValueError: no element counts.
    """
    if not bool(mask.any()):
        raise ValueError("masked_var: the mask selects no element; give every sample at least one counted token")
    return masked_moments(values, mask, unbiased)[1]


def masked_whiten(
    values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True, reduce_sum: ReduceSum = keep
) -> torch.Tensor:
    """Scale `values` to unit variance over the counted elements, and to zero mean unless `shift_mean` is False.

    Elements that do not count are transformed the same way. With `reduce_sum` the moments are those of all processes.

    Args:
        values: any shape, floating point; the result has it too.
        mask: same shape, 1 where an element counts.
    """
    mean, variance = masked_moments(values, mask, reduce_sum=reduce_sum)
    whitened = (values - mean) * torch.rsqrt(variance + WHITEN_EPSILON)
    return whitened if shift_mean else whitened + mean


def whiten(values: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """`masked_whiten` with every element counted.

    Args:
        values: any shape, floating point.
        shift_mean: also to zero mean.
    """
    return masked_whiten(values, torch.ones_like(values), shift_mean)


def clip_by_value(x: torch.Tensor, tensor_min: Any, tensor_max: Any) -> torch.Tensor:
    """`x` clamped to the limits, which are numbers or tensors that broadcast against `x`."""
    return torch.clamp(x, tensor_min, tensor_max)


# --- log-probabilities ---------------------------------------------------------------------------------------


def logprobs_from_logits(logits: torch.Tensor, labels: torch.Tensor, gather: bool = True) -> torch.Tensor:
    """Log-probabilities of `labels` [B, T] under `logits` [B, T, V]; all of them [B, T, V] if not `gather`."""
    logprobs = F.log_softmax(logits, dim=-1)
    if not gather:
        return logprobs
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def entropy_from_logits(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of each categorical distribution: logits [..., V] -> [...]."""
    logprobs = F.log_softmax(logits, dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


# --- dictionaries of statistics ------------------------------------------------------------------------------


def flatten_dict(nested: Mapping, sep: str = "/") -> dict:
    """`{"a": {"b": 1}}` -> `{"a/b": 1}`.

    Raises:
        ValueError: a key already contains `sep`.
    """
    flat: dict = {}
    for key, value in nested.items():
        if sep in key:
            raise ValueError(f"flatten_dict: key {key!r} contains the separator {sep!r}; rename it or choose another")
        if isinstance(value, Mapping):
            flat.update({f"{key}{sep}{inner}": v for inner, v in flatten_dict(value, sep).items()})
        else:
            flat[key] = value
    return flat


def stack_dicts(stats_dicts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One row per dictionary: every value is flattened, padded with `WANDB_PADDING` to the longest, and stacked.

    Args:
        stats_dicts: at least one, with equal keys and tensors of any shapes and one dtype -> [dictionaries, longest].
    """
    return {
        key: pad_sequence(
            [torch.flatten(stats[key]) for stats in stats_dicts], batch_first=True, padding_value=WANDB_PADDING
        )
        for key in stats_dicts[0]
    }


def average_torch_dicts(list_of_dicts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The element-wise mean of dictionaries with equal keys and shapes."""
    return {key: torch.stack([d[key] for d in list_of_dicts]).mean(dim=0) for key in list_of_dicts[0]}


def add_suffix(input_dict: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """The same dictionary with `suffix` appended to every key."""
    return {key + suffix: value for key, value in input_dict.items()}


def stats_to_np(stats_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors become NumPy arrays (bfloat16 as float32), scalars become floats; other values are unchanged."""
    converted: dict[str, Any] = {}
    for key, value in stats_dict.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        converted[key] = float(value) if isinstance(value, (int, float, np.number)) else value
    return converted


def convert_to_scalar(stats: Mapping[str, Any]) -> dict[str, Any]:
    """0-d and one-element 1-d arrays and tensors become Python numbers; other values are unchanged."""
    return {
        key: value.item() if getattr(value, "shape", None) in ((), (1,)) else value  # a torch.Size is a tuple
        for key, value in stats.items()
    }


# --- tensors and sampling ------------------------------------------------------------------------------------


def pad_to_size(tensor: torch.Tensor, size: int, dim: int = 1, padding: int = 50256) -> torch.Tensor:
    """`tensor` padded at the end of `dim` with `padding` until that dimension is `size` long.

    Raises:
        ValueError: the dimension is already longer.
    """
    missing = size - tensor.size(dim)
    if missing < 0:
        raise ValueError(f"pad_to_size: dimension {dim} is {tensor.size(dim)} long, more than size={size}")
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat((tensor, tensor.new_full(shape, padding)), dim=dim)


def top_k_top_p_filtering(
    logits: torch.Tensor,
    top_k: int = 0,
    top_p: float = 1.0,
    filter_value: float = -float("inf"),
    min_tokens_to_keep: int = 1,
) -> torch.Tensor:
    """`logits` [B, V] with everything outside the `top_k` best and the `top_p` nucleus set to `filter_value`.

    At least `min_tokens_to_keep` of each row are kept. `top_k=0` and `top_p=1.0` keep everything.
    """
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    no_ids = torch.empty(0, dtype=torch.long)
    if top_k > 0:
        logits = TopKLogitsWarper(top_k, filter_value, min_tokens_to_keep)(no_ids, logits)
    if top_p < 1.0:
        logits = TopPLogitsWarper(top_p, filter_value, min_tokens_to_keep)(no_ids, logits)
    return logits


@torch.no_grad()
def respond_to_batch(
    model: torch.nn.Module, queries: torch.Tensor, txt_len: int = 20, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """Sample exactly `txt_len` tokens after `queries` [B, Q] (no padding), without any stop token: [B, txt_len].

    The simplest possible sampler, for experiments; `PPOTrainer.generate` is the fast one.
    """
    input_ids = queries
    for _ in range(txt_len):
        logits = model(input_ids)[0][:, -1, :]
        probabilities = F.softmax(top_k_top_p_filtering(logits, top_k, top_p), dim=-1)
        input_ids = torch.cat((input_ids, torch.multinomial(probabilities, num_samples=1)), dim=-1)
    return input_ids[:, -txt_len:]


class LengthSampler:
    """Draws a length uniformly from `min_value` to `max_value - 1`, from NumPy's global stream."""

    def __init__(self, min_value: int, max_value: int) -> None:
        if max_value <= min_value:
            raise ValueError(f"LengthSampler: max_value={max_value} must be above min_value={min_value}")
        self.values = list(range(min_value, max_value))

    def __call__(self) -> int:
        return int(np.random.choice(self.values))


def randn_tensor(
    shape: Sequence[int],
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
) -> torch.Tensor:
    """Normal random numbers; a list of generators seeds each entry of the first dimension separately.

    Drawn on the generator's own device and then moved to `device`.
    """
    device = torch.device(device or "cpu")
    layout = layout or torch.strided
    if not isinstance(generator, list):
        source = device if generator is None else generator.device
        return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype, layout=layout).to(device)
    if len(generator) not in (1, shape[0]):
        raise ValueError(f"randn_tensor: {len(generator)} generators for {shape[0]} entries; give one, or one each")
    if len(generator) == 1:
        return randn_tensor(shape, generator[0], device, dtype, layout)
    return torch.cat([randn_tensor((1, *shape[1:]), one, device, dtype, layout) for one in generator])


# --- process-wide state --------------------------------------------------------------------------------------


def set_seed(seed: int) -> None:
    """Seed Python's `random`, NumPy's global stream, and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds CUDA, XPU and MPS as well; out-of-tree devices register themselves


class PPODecorators:
    """`empty_device_cache()`, as a decorator or in a `with` statement, frees the accelerator's cached memory.

    Of a trainer's method, if that trainer's `config.optimize_device_cache` is set; of anything else, if the class
    attribute is.
    """

    optimize_device_cache = False

    @classmethod
    def empty_device_cache(cls) -> _EmptyDeviceCache:
        """The decorator and context manager."""
        return _EmptyDeviceCache(cls)


class _EmptyDeviceCache:
    def __init__(self, settings: type[PPODecorators]) -> None:
        self.settings = settings

    def __call__(self, function: Function) -> Function:
        @functools.wraps(function)
        def decorated(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            config = getattr(args[0], "config", None) if args else None
            if getattr(config, "optimize_device_cache", self.settings.optimize_device_cache):
                free_device_cache()
            return result

        return cast("Function", decorated)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None and self.settings.optimize_device_cache:
            free_device_cache()


def numbered(things: Iterable[Hashable]) -> list[int]:
    """For each thing a number, equal ones the same; new numbers come in order from 0."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(thing, len(numbers)) for thing in things]


def is_list(thing: Any) -> bool:
    """Whether `thing` is a list, a tuple or another sequence, such as the column of a data set; a text is none."""
    return isinstance(thing, Sequence) and not isinstance(thing, (str, bytes))


def free_device_cache() -> None:
    """Return cached accelerator memory to the device; does nothing on a CPU."""
    gc.collect()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        getattr(torch, accelerator.type).empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
