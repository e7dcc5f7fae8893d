"""`PPOConfig`: every setting of the step, validated on construction."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Optional, Union

from trl_step.algorithms.advantages.estimators import WHITENING, AdvantageEstimator
from trl_step.algorithms.importance import ImportanceCorrection
from trl_step.algorithms.losses.policy import PolicyLoss
from trl_step.algorithms.losses.tokens import LossNormalization
from trl_step.command_line_types import JSON, Suppress
from trl_step.core import flatten_dict
from trl_step.import_utils import TrackerNames, is_rich_available, require_tracker
from trl_step.models.notices import warn_user
from trl_step.trainer.settings.together import check_together
from trl_step.trainer.settings.values import check_values

_DICT_FIELDS = ("tracker_kwargs", "accelerator_kwargs", "project_kwargs", "push_to_hub_if_best_kwargs")


class _Default(int):
    """A size that nobody chose: `mini_batch_size` then follows `batch_size`, also in `dataclasses.replace`, and errors
    say that it is the default. In copies and files it is a number like others."""

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


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
    log_with: Optional[TrackerNames] = None
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
    tracker_kwargs: JSON[Union[dict, str, None]] = field(default_factory=dict)
    """passed to the tracker's init, e.g. {"wandb": {"entity": "me"}}"""
    accelerator_kwargs: JSON[Union[dict, str, None]] = field(default_factory=dict)
    """passed to `accelerate.Accelerator`, e.g. {"mixed_precision": "bf16"}"""
    project_kwargs: JSON[Union[dict, str, None]] = field(default_factory=dict)
    """passed to `accelerate.utils.ProjectConfiguration`, e.g. {"logging_dir": "runs"}"""
    tracker_project_name: str = "trl"
    """project name in the tracker"""
    push_to_hub_if_best_kwargs: JSON[Union[dict, str, None]] = field(default_factory=dict)
    """when not empty, passed to `push_to_hub` each time the mean score is the best so far; needs "repo_id" """

    steps: int = 20000
    """total number of samples to train on; `total_ppo_epochs` follows from it"""
    learning_rate: float = 1.41e-5
    """of the Adam optimizer that the trainer creates if none is given"""
    adap_kl_ctrl: bool = True
    """adapt the KL coefficient towards `target`; False keeps `init_kl_coef`"""
    init_kl_coef: Optional[float] = 0.2
    """KL coefficient at the start: reward per nat"""
    kl_penalty: Literal["kl", "abs", "mse", "full", "k3"] = "kl"
    """`kl` d = logprob - ref_logprob; `abs` |d|; `mse` d²/2; `full` the exact divergence over the vocabulary; `k3`
    exp(-d) + d - 1"""
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
    default to batch_size / gradient_accumulation_steps, anew in `dataclasses.replace`"""
    gradient_accumulation_steps: int = 1
    """mini-batches per optimizer step"""
    world_size: Suppress[Optional[int]] = None
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

    is_encoder_decoder: Optional[Suppress[bool]] = None
    """set by the trainer"""
    is_peft_model: Optional[Suppress[bool]] = None
    """set by the trainer"""
    backward_batch_size: Suppress[Optional[int]] = None
    """samples per optimizer step: mini_batch_size * gradient_accumulation_steps; computed"""
    global_backward_batch_size: Suppress[Optional[int]] = None
    """the same over all processes; set by the trainer"""
    global_batch_size: Suppress[Optional[int]] = None
    """samples per step over all processes; set by the trainer"""

    gradient_checkpointing: bool = False
    """recompute the layers' activations in the backward pass: slower, uses much less memory"""
    dataset_num_proc: Optional[int] = None
    """processes for preparing a dataset, for scripts"""
    exact_v07: bool = False
    """reproduce the numbers of release 0.7.11, including its known quirks"""
    loss_normalization: LossNormalization = "mini_batch"
    """`mini_batch`: the mean of the mini-batches' token means; `tokens`: one mean over all tokens of an update;
    `samples`: the mean of each sample's token mean; `constant`: the sum over tokens, divided by the number of samples
    times `loss_constant_length`"""
    temperature: float = 1.0
    """sampling temperature; every log-prob is taken under it"""
    forward_tokens: Optional[int] = None
    """maximum tokens per forward pass, with padding; larger mini-batches run in parts, with the same gradients"""
    share_prompts: bool = True
    """run a query once for all samples of a mini-batch that have it, if the model says the same then and it saves
    tokens; not with `exact_v07` or `pad_for_acceleration`"""
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

    advantage_estimator: AdvantageEstimator = "gae"
    """`gae` needs values; `grpo` and `rloo` compare the answers to one prompt; `reinforce_plus_plus` whitens the
    rewards to come; `remax` takes the score of the greedy answer from them"""
    group_scale: Literal["std", "batch", "none"] = "std"
    """what `grpo` divides by: the standard deviation of the group, that of the batch, or nothing"""
    whiten_advantages: Optional[bool] = None
    """give the advantages mean 0 and variance 1 over all tokens of the batch; None: `gae` and `reinforce_plus_plus` do,
    the others do not"""
    policy_loss: PolicyLoss = "clip"
    """with the ratio r: `clip` PPO's; `gspo` clips the geometric mean of a sample's ratios, `sequence_clip` their
    product; `cispo` clips the weight of the log-prob; `reinforce` -A r; `sapo` a soft clip; `dppo` leaves a token out
    whose probability moved too far"""
    cliprange_high: Optional[float] = None
    """the ratio is clipped above to 1 + this; None: `cliprange`"""
    dual_clip: Optional[float] = None
    """for a negative advantage the loss is at most this times -A; None: no limit"""
    cispo_bound: float = 5.0
    """the largest weight in `cispo`"""
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)
    """of `sapo`, for positive advantages and for the others"""
    dppo_delta: float = 0.2
    """how far the probability of a token may move in `dppo`"""
    loss_constant_length: Optional[int] = None
    """tokens, for `loss_normalization="constant"`: the longest response that is allowed"""
    kl_in: Literal["reward", "loss"] = "reward"
    """where the KL penalty acts"""
    entropy_coef: float = 0.0
    """weight of an entropy bonus in the loss, per nat"""
    importance_correction: Optional[ImportanceCorrection] = None
    """what `sampling_logprobs` do to the loss, with w = exp(old - sampling log-prob): `tis` weighs a token by w, at
    most the upper bound; `icepop` by w inside of the bounds and else by 0; `sequence_mask` and `geometric_mask` leave
    samples out whose product or geometric mean of w is outside of them"""
    importance_bounds: Optional[tuple[float, float]] = None
    """(low, high) of the correction; None: (0, 2), (0.5, 5), (0, 3), (0.99, 1.01)"""
    value_learning_rate: Optional[float] = None
    """of the value head or the separate critic, in the optimizer that the trainer creates; None: `learning_rate`"""
    value_warmup_steps: int = 0
    """steps at the start in which only the value head or the critic trains, on the value loss; with `advantages=` given
    there is none, and the policy trains"""
    value_lam: Optional[float] = None
    """lambda of the values' targets; None: that of the advantages"""
    length_adaptive_alpha: Optional[float] = None
    """lambda of a sample with n counted tokens is 1 - 1 / (this n), in place of `lam`"""
    gae_level: Literal["token", "turn"] = "token"
    """what is one time step of the advantages: a token, or a turn, which is a run of tokens that count"""
    positive_nll_coef: float = 0.0
    """weight of the mean negative log-prob of samples whose score is above 0"""
    offload_reference: bool = False
    """keep the weights of a separate reference in host memory, and on the device only while it is asked"""
    padding_free: Optional[bool] = None
    """run the samples of a mini-batch in one row without padding, if the model says the same then and at least a fifth
    of its tokens are padding; None: on a CUDA device. Decoder-only models; not with `exact_v07` or
    `pad_for_acceleration`"""

    def __post_init__(self) -> None:
        self._take_json()
        self._take_deprecated()
        check_values(self)
        check_together(self)
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
            warn_user(
                "forward_batch_size is deprecated and overrides mini_batch_size; set mini_batch_size. "
                "It will be removed in trl_step 1.0.",
                FutureWarning,
            )
            self.mini_batch_size = self.forward_batch_size
        if self.optimize_cuda_cache is not None:
            warn_user(
                "optimize_cuda_cache is deprecated; set optimize_device_cache. It will be removed in trl_step 1.0.",
                FutureWarning,
            )
            self.optimize_device_cache = self.optimize_cuda_cache

    def _take_sizes(self) -> None:
        batch, mini, accumulated = self.batch_size, self.mini_batch_size, self.gradient_accumulation_steps
        by_default = [" (the default)" * isinstance(size, _Default) for size in (batch, mini)]
        # differs from v0.7: PPOConfig(batch_size=8) was refused, since 8 is not a multiple of 128
        if isinstance(mini, _Default):
            mini = _Default(min(PPOConfig.mini_batch_size, max(batch // accumulated, 1)))
        self.batch_size, self.mini_batch_size = int(batch), mini
        self.backward_batch_size = self.mini_batch_size * accumulated
        if batch % self.backward_batch_size:
            raise ValueError(
                f"batch_size={batch}{by_default[0]} must be a multiple of mini_batch_size * "
                f"gradient_accumulation_steps = {mini}{by_default[1]} * {accumulated} = {self.backward_batch_size}"
            )

    @property
    def needs_values(self) -> bool:
        """Whether the advantages are made of values."""
        return self.advantage_estimator == "gae"

    @property
    def whitens(self) -> bool:
        """Whether the advantages are whitened."""
        return self.advantage_estimator in WHITENING if self.whiten_advantages is None else self.whiten_advantages

    def _check_packages(self) -> None:
        for tracker in self.trackers:
            require_tracker(tracker)
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
