"""`SFTConfig` and `DPOConfig`: `TrainingArguments` that hold arguments of a trainer, as in TRL 0.9 to 0.11."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, ParamSpec

from trl_step.trainer.text.training_arguments import TrainingArguments, own_fields

Parameters = ParamSpec("Parameters")


class TrainerConfig(TrainingArguments):
    """`TrainingArguments` and fields that are arguments of a trainer; subclasses are dataclasses with these fields."""

    elsewhere: ClassVar[dict[str, str]] = {}
    """fields that no trainer here reads, and what to do in place of setting them"""

    def __init__(self, output_dir: Optional[str] = None, **arguments: Any) -> None:
        for name, default in own_fields(type(self)).items():
            setattr(self, name, arguments.pop(name, default))
        super().__init__(output_dir=output_dir, **arguments)

    def __post_init__(self) -> None:
        for name, default in own_fields(type(self)).items():
            if name in self.elsewhere and getattr(self, name) != default:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect here: {self.elsewhere[name]}")
        super().__post_init__()

    def of_trainer(self) -> dict[str, Any]:
        """The fields, by name."""
        return {name: getattr(self, name) for name in own_fields(type(self)) if name not in self.elsewhere}


@dataclass(init=False)
class SFTConfig(TrainerConfig):
    """`TrainingArguments` (old names work too) and arguments of `SFTTrainer`, which takes those that it is not given.

    Args:
        output_dir: folder of the checkpoints
        arguments: the fields below, and the other arguments of `transformers.TrainingArguments`

    Raises:
        ValueError: a field that has no effect here is set.
    """

    dataset_text_field: Optional[str] = None
    """the column with the text"""
    packing: bool = False
    """join the texts and cut rows of `max_seq_length` tokens"""
    max_seq_length: Optional[int] = None
    """maximum tokens of a text, tokens of a packed row"""
    dataset_num_proc: Optional[int] = None
    """processes of the tokenization"""
    dataset_batch_size: int = 1000
    """rows that are tokenized together"""
    model_init_kwargs: Optional[dict] = None
    """for a model given by name"""
    dataset_kwargs: Optional[dict] = None
    """`add_special_tokens`, `append_concat_token`"""
    eval_packing: Optional[bool] = None
    """refused unless None: `eval_dataset` is packed if `packing` is set"""
    num_of_sequences: int = 1024
    """of `ConstantLengthDataset`"""
    chars_per_token: float = 3.6
    """of `ConstantLengthDataset`"""
    use_liger: bool = False
    """refused unless False"""

    elsewhere: ClassVar[dict[str, str]] = {
        "eval_packing": "eval_dataset is packed if packing is set; tokenize it yourself for rows of other lengths",
        "use_liger": "set use_liger_kernel of TrainingArguments",
    }

    def __init__(self, output_dir: Optional[str] = None, **arguments: Any) -> None:
        super().__init__(output_dir, **arguments)


@dataclass(init=False)
class DPOConfig(TrainerConfig):
    """`TrainingArguments` (old names work too) and arguments of `DPOTrainer`, which takes those that it is not given.

    Args:
        output_dir: folder of the checkpoints
        arguments: the fields below, and the other arguments of `transformers.TrainingArguments`

    Raises:
        ValueError: a field that has no effect here is set.
    """

    beta: float = 0.1
    """strength of the pull to the reference"""
    label_smoothing: float = 0.0
    """share of pairs whose labels are taken to be wrong"""
    loss_type: str = "sigmoid"
    """"sigmoid", "hinge", "ipo" or "kto_pair" """
    label_pad_token_id: int = -100
    """label of padding"""
    padding_value: Optional[int] = None
    """padding of inputs; None: that of the tokenizer"""
    truncation_mode: str = "keep_end"
    """of prompts: "keep_end" or "keep_start" """
    max_length: Optional[int] = None
    """maximum tokens of prompt and answer"""
    max_prompt_length: Optional[int] = None
    """maximum tokens of a prompt"""
    max_target_length: Optional[int] = None
    """maximum tokens of an answer of an encoder-decoder model"""
    max_completion_length: Optional[int] = None
    """the name of `max_target_length` in 0.11"""
    is_encoder_decoder: Optional[bool] = None
    """whether `model_init` builds such a model"""
    disable_dropout: bool = True
    """of model and reference"""
    generate_during_eval: bool = False
    """log answers of both as a table"""
    precompute_ref_log_probs: bool = False
    """run the reference once, before training"""
    dataset_num_proc: Optional[int] = None
    """processes of the tokenization"""
    model_init_kwargs: Optional[dict] = None
    """for a model given by name"""
    ref_model_init_kwargs: Optional[dict] = None
    """for a reference given by name"""
    model_adapter_name: Optional[str] = None
    """adapter that is trained"""
    ref_adapter_name: Optional[str] = None
    """adapter that is the reference"""
    reference_free: bool = False
    """compare with a uniform reference"""
    force_use_ref_model: bool = False
    """refused unless False"""
    f_divergence_type: str = "reverse_kl"
    """refused unless "reverse_kl" """
    f_alpha_divergence_coef: float = 1.0
    """refused unless 1.0"""
    sync_ref_model: bool = False
    """refused unless False"""
    ref_model_mixup_alpha: float = 0.9
    """refused unless 0.9"""
    ref_model_sync_steps: int = 64
    """refused unless 64"""
    rpo_alpha: Optional[float] = None
    """refused unless None"""

    elsewhere: ClassVar[dict[str, str]] = {
        "force_use_ref_model": "a ref_model that is given is used, also with an adapter",
        "f_divergence_type": "DPOTrainer has the reverse KL divergence alone",
        "f_alpha_divergence_coef": "DPOTrainer has the reverse KL divergence alone",
        "sync_ref_model": "the reference of DPOTrainer does not move",
        "ref_model_mixup_alpha": "the reference of DPOTrainer does not move",
        "ref_model_sync_steps": "the reference of DPOTrainer does not move",
        "rpo_alpha": "DPOTrainer has no such term; override dpo_loss",
    }

    def __init__(self, output_dir: Optional[str] = None, **arguments: Any) -> None:
        super().__init__(output_dir, **arguments)

    def __post_init__(self) -> None:
        if getattr(self.f_divergence_type, "value", None) == "reverse_kl":
            self.f_divergence_type = "reverse_kl"
        if self.max_target_length is None:
            self.max_target_length = self.max_completion_length
        super().__post_init__()


def takes_settings(init: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """A constructor that takes what it is not given from `args`, if that is a `TrainerConfig`."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def constructor(*given: Parameters.args, **named: Parameters.kwargs) -> None:
        bound = signature.bind_partial(*given, **named).arguments
        args = bound.get("args")
        settings = args.of_trainer() if isinstance(args, TrainerConfig) else {}
        more: Any = {name: settings[name] for name in settings if name in signature.parameters and name not in bound}
        init(*given, **named, **more)

    return constructor
