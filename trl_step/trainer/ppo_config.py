"""`PPOConfig`: every setting of the step, validated on construction."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import warnings
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, Optional, Union, get_args

import tyro

from trl_step.algorithms.kl import KL_PENALTIES
from trl_step.core import flatten_dict
from trl_step.import_utils import is_rich_available, is_tensorboard_available, is_wandb_available

JSONDict = Annotated[Union[dict, str, None], tyro.conf.arg(metavar="JSON", constructor=json.loads)]
LossNormalization = Literal["mini_batch", "tokens"]

_DICT_FIELDS = ("tracker_kwargs", "accelerator_kwargs", "project_kwargs", "push_to_hub_if_best_kwargs")
_TRACKERS = {"wandb": is_wandb_available, "tensorboard": is_tensorboard_available}
_INF = math.inf
# field: (lowest, highest, whether the lowest itself is allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "steps": (1, _INF, True),
    "learning_rate": (0, _INF, True),
    "init_kl_coef": (0, _INF, True),
    "target": (0, _INF, False),
    "horizon": (0, _INF, False),
    "gamma": (0, 1, True),
    "lam": (0, 1, True),
    "cliprange": (0, _INF, True),
    "cliprange_value": (0, _INF, True),
    "vf_coef": (0, _INF, True),
    "batch_size": (1, _INF, True),
    "mini_batch_size": (1, _INF, True),
    "gradient_accumulation_steps": (1, _INF, True),
    "ppo_epochs": (1, _INF, True),
    "max_grad_norm": (0, _INF, False),
    "target_kl": (0, _INF, False),
    "compare_steps": (1, _INF, True),
    "ratio_threshold": (0, _INF, False),
    "score_clip": (0, _INF, False),
    "temperature": (0, _INF, False),
    "forward_tokens": (1, _INF, True),
    "generation_tokens": (1, _INF, True),
    "pad_max_len": (2, _INF, True),
    "save_every": (1, _INF, True),
    "keep_last": (1, _INF, True),
    "num_sample_generations": (0, _INF, True),
}
_FLAGS = (
    "remove_unused_columns",
    "adap_kl_ctrl",
    "early_stopping",
    "use_score_scaling",
    "use_score_norm",
    "whiten_rewards",
    "gradient_checkpointing",
    "exact_v07",
    "pad_for_acceleration",
    "use_habana",
    "log_arrays",
    "progress_bar",
)
_WHOLE_NUMBERS = (
    "steps",
    "batch_size",
    "forward_batch_size",
    "mini_batch_size",
    "gradient_accumulation_steps",
    "ppo_epochs",
    "compare_steps",
    "forward_tokens",
    "generation_tokens",
    "pad_max_len",
    "save_every",
    "keep_last",
    "num_sample_generations",
)


class _Default(int):
    """A size that nobody chose: `mini_batch_size` then follows `batch_size`, and errors say that it is the default."""


@dataclass
class PPOConfig:
    """Settings of `PPOTrainer`. Names and defaults are those of release 0.7.11; new ones are at the end.

    Works by hand, with `tyro.cli(PPOConfig)` and with `transformers.HfArgumentParser(PPOConfig)`.

    Raises:
        ValueError: a value is out of range; the message names the field, the value and what is allowed.
        ImportError: the package of a requested tracker or device is missing.
    """

    exp_name: str = field(default_factory=lambda: os.path.basename(sys.argv[0]).removesuffix(".py"))
    """name of this experiment; the running script's name by default"""
    seed: Optional[int] = 0
    """seeds python, NumPy and torch when a trainer is built; None leaves the process's random state unchanged"""
    log_with: Optional[Literal["wandb", "tensorboard"]] = None
    """tracker that `log_stats` writes to; a script may give a list of several"""
    task_name: Optional[str] = None
    """name of the task, for the tracker only"""
    model_name: Optional[str] = "gpt2"
    """name or folder of the model, for scripts and the tracker"""
    query_dataset: Optional[str] = "imdb"
    """name of the query dataset, for scripts and the tracker"""
    reward_model: Optional[str] = "sentiment-analysis:lvwerra/distilbert-imdb"
    """name of the reward model, for scripts and the tracker"""
    remove_unused_columns: bool = True
    """drop the columns of a `datasets.Dataset` that neither the model nor the logs use"""
    tracker_kwargs: JSONDict = field(default_factory=dict)
    """passed to the tracker's init, e.g. {"wandb": {"entity": "me"}}"""
    accelerator_kwargs: JSONDict = field(default_factory=dict)
    """passed to `accelerate.Accelerator`, e.g. {"mixed_precision": "bf16"}"""
    project_kwargs: JSONDict = field(default_factory=dict)
    """passed to `accelerate.utils.ProjectConfiguration`, e.g. {"logging_dir": "runs"}"""
    tracker_project_name: str = "trl"
    """project name in the tracker"""
    push_to_hub_if_best_kwargs: JSONDict = field(default_factory=dict)
    """when not empty, passed to `push_to_hub` each time the mean score is the best so far; needs "repo_id" """

    steps: int = 20000
    """total number of samples to train on; `total_ppo_epochs` follows from it"""
    learning_rate: float = 1.41e-5
    """of the Adam optimizer that the trainer creates if none is given"""
    adap_kl_ctrl: bool = True
    """adapt the KL coefficient towards `target`; False keeps `init_kl_coef`"""
    init_kl_coef: Optional[float] = 0.2
    """KL coefficient at the start: reward per nat"""
    kl_penalty: Literal["kl", "abs", "mse", "full"] = "kl"
    """`kl` d = logprob - ref_logprob; `abs` |d|; `mse` d²/2; `full` the exact divergence over the vocabulary"""
    target: Optional[float] = 6
    """KL per sample, in nats, that the adaptive controller aims at"""
    horizon: Optional[float] = 10000
    """samples over which the adaptive controller moves the coefficient"""
    gamma: float = 1
    """discount per token"""
    lam: float = 0.95
    """lambda of the generalized advantage estimate"""
    cliprange: float = 0.2
    """the policy's ratio is clipped to 1 ± this"""
    cliprange_value: float = 0.2
    """the value prediction is clipped to the old one ± this"""
    vf_coef: float = 0.1
    """weight of the value loss"""
    batch_size: int = _Default(128)
    """samples per step and process, for the dataloader; `step` itself takes any number"""
    forward_batch_size: Optional[int] = None
    """deprecated, use `mini_batch_size`, which it overrides"""
    mini_batch_size: int = _Default(128)
    """samples per forward and backward pass; a batch of fewer than 128 * gradient_accumulation_steps samples lowers the
    default to batch_size / gradient_accumulation_steps"""
    gradient_accumulation_steps: int = 1
    """mini-batches per optimizer step"""
    world_size: tyro.conf.Suppress[Optional[int]] = None
    """number of processes; set by the trainer"""
    ppo_epochs: int = 4
    """passes over the batch per step"""
    max_grad_norm: Optional[float] = None
    """clip the gradient's norm to this at every update; None does not clip"""
    optimize_cuda_cache: Optional[bool] = None
    """deprecated, use `optimize_device_cache`"""
    optimize_device_cache: Optional[bool] = False
    """release cached accelerator memory after each step: slower, uses slightly less memory"""
    early_stopping: bool = False
    """skip the remaining PPO epochs once the policy has moved too far"""
    target_kl: float = 1
    """early stopping at a mean of old_logprob - logprob above 1.5 times this"""
    compare_steps: int = 1
    """steps between two checks for a best score, for `push_to_hub_if_best_kwargs`"""
    ratio_threshold: float = 10.0
    """a mini-batch whose mean ratio exceeds this is skipped"""
    use_score_scaling: bool = False
    """divide the scores by their running standard deviation"""
    use_score_norm: bool = False
    """subtract the running mean as well; implies the scaling"""
    score_clip: Optional[float] = None
    """limit the scores to ± this, after scaling; with token scores, each of them"""
    whiten_rewards: bool = False
    """scale the per-token rewards to unit variance before the advantages"""

    is_encoder_decoder: Optional[tyro.conf.Suppress[bool]] = None
    """set by the trainer"""
    is_peft_model: Optional[tyro.conf.Suppress[bool]] = None
    """set by the trainer"""
    backward_batch_size: tyro.conf.Suppress[Optional[int]] = None
    """samples per optimizer step: mini_batch_size * gradient_accumulation_steps; computed"""
    global_backward_batch_size: tyro.conf.Suppress[Optional[int]] = None
    """the same over all processes; set by the trainer"""
    global_batch_size: tyro.conf.Suppress[Optional[int]] = None
    """samples per step over all processes; set by the trainer"""

    gradient_checkpointing: bool = False
    """recompute the layers' activations in the backward pass: slower, uses much less memory"""
    dataset_num_proc: Optional[int] = None
    """processes for preparing a dataset, for scripts"""
    exact_v07: bool = False
    """reproduce the numbers of release 0.7.11, including its known quirks"""
    loss_normalization: LossNormalization = "mini_batch"
    """`mini_batch`: the mean of the mini-batches' token means; `tokens`: one mean over all tokens of an update"""
    temperature: float = 1.0
    """sampling temperature; every log-prob is taken under it"""
    forward_tokens: Optional[int] = None
    """maximum tokens per forward pass, with padding; larger mini-batches run in parts, with the same gradients"""
    generation_tokens: int = 16384
    """`generate` batches prompts together up to this many tokens, including padding and new tokens"""
    pad_for_acceleration: bool = False
    """pad every batch to `pad_max_len`, for accelerators that compile by shape"""
    pad_max_len: Optional[int] = None
    """the fixed length in tokens, query and response together, for `pad_for_acceleration`"""
    use_habana: bool = False
    """train on an `hpu` device; needs the package habana_frameworks"""
    log_arrays: bool = False
    """`log_stats` also writes the statistics with a value per token, as histograms"""
    progress_bar: bool = False
    """show a progress bar with reward, KL, entropy and tokens per second"""
    num_sample_generations: int = 0
    """number of tables of samples printed over `steps`, evenly spaced; needs the package rich. For one every n steps:
    `trainer.on_step(SampleTable(every=n))`"""

    save_every: Optional[int] = None
    """steps between two automatic `save_state`s into `save_dir`; a step that Ctrl-C interrupts is saved as well"""
    save_dir: Optional[str] = None
    """folder of the automatic states; `load_state("latest")` looks there"""
    keep_last: Optional[int] = None
    """number of automatic states to keep, older ones are removed; None keeps all"""

    def __post_init__(self) -> None:
        self._take_json()
        self._take_deprecated()
        self._check_values()
        self._check_packages()
        self._take_sizes()
        self.total_ppo_epochs = math.ceil(self.steps / self.batch_size)

    def _take_json(self) -> None:
        for name in _DICT_FIELDS:
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    value = json.loads(value)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{name}={value!r} is not a JSON object: {error}") from error
            if not isinstance(value, dict) and value is not None:
                raise ValueError(f"{name}={value!r} must be a dictionary, or a JSON object as a string")
            setattr(self, name, value or {})

    def _take_deprecated(self) -> None:
        if self.forward_batch_size is not None:
            warnings.warn(
                "forward_batch_size is deprecated and overrides mini_batch_size; set mini_batch_size. "
                "It will be removed in trl_step 1.0.",
                FutureWarning,
                stacklevel=4,
            )
            self.mini_batch_size = self.forward_batch_size
        if self.optimize_cuda_cache is not None:
            warnings.warn(
                "optimize_cuda_cache is deprecated; set optimize_device_cache. It will be removed in trl_step 1.0.",
                FutureWarning,
                stacklevel=4,
            )
            self.optimize_device_cache = self.optimize_cuda_cache

    def _check_values(self) -> None:
        for name in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{name}={value!r} must be a whole number")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False")
        optional = {f.name for f in fields(self) if f.default is None}
        optional |= set() if self.adap_kl_ctrl else {"target", "horizon"}
        for name, (low, high, closed) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (low <= value if closed else low < value) or not value <= high or value == _INF:
                allowed = f"a finite number {'>=' if closed else '>'} {low}" + (f" and <= {high}" * (high < _INF))
                raise ValueError(f"{name}={value!r} must be {allowed}")
        self._check_choice("kl_penalty", KL_PENALTIES)
        self._check_choice("loss_normalization", get_args(LossNormalization))
        for tracker in self.trackers:
            if tracker not in _TRACKERS:
                raise ValueError(f"log_with={self.log_with!r} must be None or one of {', '.join(_TRACKERS)}")
        if self.seed is not None and (not isinstance(self.seed, int) or not 0 <= self.seed < 2**32):
            raise ValueError(f"seed={self.seed!r} must be None or a whole number from 0 to 2**32 - 1")
        if self.pad_for_acceleration and self.pad_max_len is None:
            raise ValueError("pad_for_acceleration=True needs pad_max_len, the length in tokens to pad every batch to")
        if self.save_every is not None and not self.save_dir:
            raise ValueError(f"save_every={self.save_every} needs save_dir, the folder to save the run's states in")
        if self.push_to_hub_if_best_kwargs and "repo_id" not in self.push_to_hub_if_best_kwargs:
            raise ValueError("push_to_hub_if_best_kwargs must contain the key 'repo_id', the hub repository to push to")

    def _take_sizes(self) -> None:
        batch, mini, accumulated = self.batch_size, self.mini_batch_size, self.gradient_accumulation_steps
        by_default = [" (the default)" * isinstance(size, _Default) for size in (batch, mini)]
        # differs from v0.7: PPOConfig(batch_size=8) was refused, since 8 is not a multiple of 128
        if isinstance(mini, _Default):
            mini = min(mini, max(batch // accumulated, 1))
        self.batch_size, self.mini_batch_size = int(batch), int(mini)
        self.backward_batch_size = self.mini_batch_size * accumulated
        if batch % self.backward_batch_size:
            raise ValueError(
                f"batch_size={batch}{by_default[0]} must be a multiple of mini_batch_size * "
                f"gradient_accumulation_steps = {mini}{by_default[1]} * {accumulated} = {self.backward_batch_size}"
            )

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(map(repr, allowed))}")

    def _check_packages(self) -> None:
        for tracker in self.trackers:
            if not _TRACKERS[tracker]():
                raise ImportError(f'log_with="{tracker}" needs the package {tracker}: pip install {tracker}')
        if self.num_sample_generations and not is_rich_available():
            raise ImportError(
                f"num_sample_generations={self.num_sample_generations} needs the package rich: pip install rich"
            )
        if self.use_habana and importlib.util.find_spec("habana_frameworks") is None:
            raise ImportError(
                "use_habana=True needs the package habana_frameworks: pip install habana-torch-plugin, on a machine "
                "with Gaudi accelerators"
            )

    @property
    def trackers(self) -> list[str]:
        """`log_with` as a list; a script may give several trackers at once."""
        if self.log_with is None:
            return []
        return [self.log_with] if isinstance(self.log_with, str) else list(self.log_with)

    def to_dict(self) -> dict[str, Any]:
        """All settings as one flat dictionary, nested ones as "outer/inner"."""
        return flatten_dict({**asdict(self), "total_ppo_epochs": self.total_ppo_epochs})
