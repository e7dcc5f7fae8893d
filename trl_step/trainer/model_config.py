"""Command-line settings of a training script: which model, how it is loaded, which data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from trl_step.core import flatten_dict

DTYPES = ["auto", "bfloat16", "float16", "float32"]


@dataclass
class ModelConfig:
    """Which model is loaded and how, for `transformers.HfArgumentParser` or tyro.

    `dtype` and `torch_dtype` are two names of one setting, and so are `use_bnb_nested_quant` and
    `bnb_4bit_use_double_quant`: set either, read either.

    Raises:
        ValueError: both 4 and 8 bits are requested, or two names of one setting disagree.
    """

    model_name_or_path: Optional[str] = field(default=None, metadata={"help": "Folder or hub name of the model."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    torch_dtype: Optional[str] = field(
        default=None, metadata={"help": "Older name of dtype.", "choices": DTYPES}
    )  # fmt: skip
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code in the repository."})
    attn_implementation: Optional[str] = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2 or a kernel's hub name."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train an adapter instead of the whole model."})
    lora_r: Optional[int] = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: Optional[int] = field(default=32, metadata={"help": "Scale of the adapter, times its rank."})
    lora_dropout: Optional[float] = field(default=0.05, metadata={"help": "Dropout before the adapter."})
    lora_target_modules: Optional[list[str]] = field(
        default=None,
        metadata={"help": "Names of the layers that get an adapter, or all-linear; peft knows common models."},
    )
    lora_modules_to_save: Optional[list[str]] = field(
        default=None, metadata={"help": "Names of layers that are trained fully, and saved with the adapter."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Base weights in 8 bits; train with an adapter."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Base weights in 4 bits; train with an adapter."})
    bnb_4bit_quant_type: Optional[str] = field(default="nf4", metadata={"help": "4-bit format: nf4 or fp4."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantize the 4-bit constants too."})
    dtype: Optional[str] = field(
        default=None,
        metadata={"help": "Dtype of the loaded weights; auto uses that of the file.", "choices": DTYPES},
    )
    lora_target_parameters: Optional[list[str]] = field(
        default=None, metadata={"help": "Names of parameters, not layers, that get an adapter: experts, for example."}
    )
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "peft's task; SEQ_CLS for a reward model."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha over the root of the rank."})
    use_dora: bool = field(default=False, metadata={"help": "Weight-decomposed adapters (DoRA)."})
    bnb_4bit_use_double_quant: bool = field(default=False, metadata={"help": "Other name of use_bnb_nested_quant."})
    bnb_4bit_quant_storage: Optional[str] = field(
        default=None, metadata={"help": "Dtype that 4-bit weights are stored in; FSDP needs that of the other weights."}
    )

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit are both set: choose one")
        if self.dtype is not None and self.torch_dtype not in (None, self.dtype):
            raise ValueError(f"dtype={self.dtype} and torch_dtype={self.torch_dtype} are one setting: give one of them")
        if self.lora_target_modules == ["all-linear"]:  # the command line makes lists; peft knows the word alone
            self.lora_target_modules = "all-linear"  # type: ignore[assignment]
        self.dtype = self.torch_dtype = self.torch_dtype if self.dtype is None else self.dtype
        nested = self.use_bnb_nested_quant or self.bnb_4bit_use_double_quant
        self.use_bnb_nested_quant = self.bnb_4bit_use_double_quant = nested

    def to_dict(self) -> dict[str, Any]:
        """All settings, one level deep."""
        return flatten_dict(asdict(self))


@dataclass
class ScriptArguments:
    """Which data a training script reads, for `transformers.HfArgumentParser` or tyro."""

    dataset_name: Optional[str] = field(default=None, metadata={"help": "Folder or hub name of the dataset."})
    dataset_config: Optional[str] = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Stream the dataset during training."})
    ignore_bias_buffers: bool = field(
        default=False, metadata={"help": "Do not synchronize boolean buffers between processes."}
    )
    dataset_split: Optional[str] = field(
        default=None, repr=False, metadata={"help": "Old name of dataset_train_split."}
    )

    def __post_init__(self) -> None:
        if self.dataset_split is None:
            return
        if self.dataset_train_split not in ("train", self.dataset_split):
            raise ValueError("dataset_split is the old name of dataset_train_split: give one of them")
        self.dataset_train_split, self.dataset_split = self.dataset_split, None
