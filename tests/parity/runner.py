"""Runs one parity case on a library with the v0.7 step API: the reference release to record, ours to replay."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from tests.parity.cases import ADAM_EPS, EOS_ID, PAD_ID, SHAPES, UNKNOWN_ID, VOCABULARY_SIZE, Case, Shape
from tests.parity.recording import StepInputs, StepResult

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Library:
    """The package under test.

    Attributes:
        module: has `PPOConfig`, `PPOTrainer` and the two value-head classes.
        config: fields of `PPOConfig` that every case gets on top of its own.
        prepare: called with the built trainer before its first step.
    """

    module: ModuleType
    config: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] = lambda trainer: None


def run_case(
    library: Library, case: Case, inputs: Sequence[StepInputs], policy: Weights, reference: Weights
) -> list[StepResult]:
    """Build model, reference and trainer of a case from the given weights and run its steps."""
    shape = SHAPES[case.shape]
    model = build_model(library, shape)
    set_weights(model, shape, policy)
    ref_model = None
    if case.reference == "perturbed":
        ref_model = build_model(library, shape)
        set_weights(ref_model, shape, reference)

    config = library.module.PPOConfig(**case.ppo_config, **library.config)
    optimizer, scheduler = _optimizer(case, model, config.learning_rate)
    trainer = library.module.PPOTrainer(
        config,
        model,
        ref_model,
        build_tokenizer(case.padding_side),
        optimizer=optimizer,
        num_shared_layers=case.num_shared_layers,
        lr_scheduler=scheduler,
    )
    library.prepare(trainer)
    return [_run_step(trainer, shape, policy, step.tensors(case.score_dims)) for step in inputs]


def build_tokenizer(padding_side: str) -> Any:
    """A tokenizer of whole words, the same in every version of transformers."""
    vocabulary = {"<pad>": PAD_ID, "</s>": EOS_ID, "<unk>": UNKNOWN_ID}
    vocabulary |= {f"w{index}": index for index in range(len(vocabulary), VOCABULARY_SIZE)}
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side=padding_side,
    )


def build_model(library: Library, shape: Shape) -> Any:
    """The value-head model of a shape, with weights that are still to be loaded."""
    config = getattr(transformers, shape.config_class)(**shape.config)
    pretrained = getattr(transformers, shape.model_class)(config)
    if shape.untied:
        pretrained.lm_head.weight = torch.nn.Parameter(pretrained.lm_head.weight.detach().clone())
    wrapper = (
        library.module.AutoModelForSeq2SeqLMWithValueHead
        if shape.encoder_decoder
        else library.module.AutoModelForCausalLMWithValueHead
    )
    arguments = dict(shape.value_head)
    if shape.lora is not None:
        from peft import LoraConfig

        arguments["peft_config"] = LoraConfig(**shape.lora)
    return wrapper.from_pretrained(pretrained, **arguments)


def state(model: torch.nn.Module, shape: Shape, recorded_names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Recorded name -> the model's tensor.

    Raises:
        KeyError: a recorded name has no tensor in the model, or one of the model's parameters no recorded name.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    own.update({name: buffer for name, buffer in model.named_buffers() if is_learned_buffer(name)})
    found = {}
    for name in recorded_names:
        today = name
        if name not in own:
            for old, new in shape.renamed.items():
                today = today.replace(old, new)
        if today not in own:
            raise KeyError(f"recorded parameter {name!r} is not in the model, which has {sorted(own)}")
        found[name] = own[today]
    covered = {id(tensor) for tensor in found.values()}
    left_over = [name for name, tensor in own.items() if id(tensor) not in covered]
    if left_over or len(covered) != len(found):
        raise KeyError(f"{len(found)} recorded names for {len(covered)} tensors; without a recording: {left_over}")
    return found


def is_learned_buffer(name: str) -> bool:
    """Whether a buffer is part of what the model computes and not just a cached constant (BART's logits bias)."""
    return name.endswith("final_logits_bias")


def set_weights(model: torch.nn.Module, shape: Shape, weights: Weights) -> None:
    """Fill a model with recorded weights."""
    with torch.no_grad():
        for name, tensor in state(model, shape, list(weights)).items():
            tensor.copy_(torch.from_numpy(np.array(weights[name])))


def _optimizer(case: Case, model: torch.nn.Module, learning_rate: float) -> tuple[Any, Any]:
    """The optimizer and the scheduler that are passed to the trainer, each None where the case passes none."""
    if case.optimizer == "default":
        return None, None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate, eps=ADAM_EPS)
    scheduler = None
    if case.scheduler:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return optimizer, scheduler


def _run_step(trainer: Any, shape: Shape, names: Weights, arguments: dict[str, Any]) -> StepResult:
    stats = trainer.step(**arguments)
    scalars = {
        key: float(value)
        for key, value in stats.items()
        if not key.startswith("time/") and np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"
    }
    weights = {
        name: tensor.detach().cpu().numpy().astype(np.float32)
        for name, tensor in state(trainer.model, shape, list(names)).items()
        if tensor.requires_grad
    }
    return StepResult(scalars, weights)
