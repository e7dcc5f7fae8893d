"""The optimizer and the schedule that `TrainingArguments` ask for."""

from __future__ import annotations

from typing import Any

import torch
import transformers


def make_optimizer(args: Any, model: torch.nn.Module) -> torch.optim.Optimizer:
    """That of `args.optim` over what trains of `model`; norms and biases without weight decay.

    Raises:
        ValueError: nothing trains, or the optimizer is made in another way than from parameters.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("the policy has no parameter with requires_grad=True; nothing could be trained")
    chosen: Any = model
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, chosen))  # type: ignore[arg-type]
    kind, options = transformers.Trainer.get_optimizer_cls_and_kwargs(args, chosen)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or {"params", "model"} & set(options):
        raise ValueError(f"optim={args.optim} is not made from parameters alone: pass the optimizer as optimizers=")
    groups = [
        {"params": [p for name, p in trained.items() if (name in decayed) == decays], "weight_decay": decay}
        for decays, decay in ((True, args.weight_decay), (False, 0.0))
    ]
    return kind([group for group in groups if group["params"]], **options)


def make_scheduler(args: Any, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The schedule of `args.lr_scheduler_type` over `steps` steps of the run."""
    return transformers.get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
