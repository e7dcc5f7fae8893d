"""Section of gpu_check.py: the numbers on this device are those of the CPU, of autograd and of release 0.7.11.

Small models in float32, without TF32, unless a line says bf16 or fp16. How far weights move is compared as the norm
of the difference over the norm of the move; updates are plain SGD, so that the move is the gradient.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import GradScalerKwargs
from heads import check_heads
from records import Section, distance

import trl_step
from tests import tiny
from tests.parity.cases import CASES, SHAPES
from tests.parity.recording import differences, load_inputs, load_recording, load_weights
from tests.parity.runner import Library, run_case
from trl_step import PPOTrainer
from trl_step.trainer.updates.on_device import OnDeviceUpdater
from trl_step.trainer.updates.updater import Updater

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "t5": ("t5", {}),
    "adapters": ("llama", {"lora": True}),
    "checkpointing": ("llama", {"gradient_checkpointing": True}),
    "full KL": ("llama", {"kl_penalty": "full"}),
    "accumulated": ("gpt2", {"mini_batch_size": 2, "gradient_accumulation_steps": 2}),
    "in parts, clipped": ("gpt2", {"forward_tokens": 16, "max_grad_norm": 0.1}),
    "gspo": ("llama", {"policy_loss": "gspo", "cliprange": 0.01, "entropy_coef": 0.05}),
    "padding-free": ("llama", {"padding_free": True}),
    "padded": ("llama", {"padding_free": False}),
    "reference on the host": ("gpt2", {"offload_reference": True}),
}
"""Name -> model, and settings of `moved`."""
FEW = ("adapters", "t5", "padding-free")
"""Of `VARIANTS`, with --tiny."""
SAME = 1e-3
"""For two ways to compute one move in float32."""
MOVES = "MOVES"
"""Environment variable: the file into which a process on the CPU writes its moves."""


class Plain(PPOTrainer):
    """Overrides a method of release 0.7, so that a step goes through full logits and autograd."""

    def loss(self, *args: Any) -> Any:
        return super().loss(*args)


def make(
    device: str,
    name: str,
    cls: type[PPOTrainer] = PPOTrainer,
    precision: str = "no",
    lora: bool = False,
    sgd: bool = True,
    handlers: Any = (),
    placed: Callable[[Any], Any] | None = None,
    **settings: Any,
) -> PPOTrainer:
    """A trainer of a tiny model; `placed` spreads it over devices."""
    torch.manual_seed(0)
    options = {"peft_config": adapters()} if lora else {}
    model = tiny.with_value_head(name, **options)
    if placed is not None:
        model.pretrained_model = placed(model.pretrained_model)
        model.post_init({})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05) if sgd else None
    accelerator = {"cpu": device == "cpu", "mixed_precision": precision, "kwargs_handlers": list(handlers)}
    config = tiny.config(accelerator_kwargs=accelerator, **settings)
    return cls(config, model, None, tiny.tokenizer(), optimizer=optimizer)


def adapters() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def moved(trainer: PPOTrainer, model: str, seed: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """How far each trained weight moves in a step, on the CPU, and the statistics."""
    before = weights(trainer)
    np.random.seed(0)
    stats = trainer.step(*tiny.batch(seed=seed, seq2seq=model in tiny.SEQ2SEQ))
    return {name: after - before[name] for name, after in weights(trainer).items()}, stats


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: value.detach().cpu().clone() for name, value in named if value.requires_grad}


def variants(section: Section) -> dict[str, tuple[str, dict[str, Any]]]:
    return {name: VARIANTS[name] for name in FEW} if section.tiny else VARIANTS


def check_moves(section: Section) -> dict[str, dict[str, torch.Tensor]]:
    """The fast path against full logits, and bf16 against float32; returns the moves in float32."""
    found = {}
    for name, (model, settings) in variants(section).items():
        with section.attempt(f"move, {name}"):
            found[name], stats = moved(make(section.device, model, **settings), model)
            section.check(f"first ratio, {name}", stats["ppo/policy/ratio_error"], 1e-5, "mean |ratio - 1|")
            if settings.get("policy_loss") is None:  # release 0.7 has no such losses
                plain, _ = moved(make(section.device, model, Plain, **settings), model)
                section.check(f"move, {name}, fused against full logits", distance(found[name], plain), SAME)
    with section.attempt("bf16"):
        half, stats = moved(make(section.device, "llama", precision="bf16"), "llama")
        single, _ = moved(make(section.device, "llama"), "llama")
        section.check("first ratio, bf16", stats["ppo/policy/ratio_error"], 1e-2, "mean |ratio - 1|")
        section.check("move, bf16 against float32", distance(half, single), 0.1, "8 bits of mantissa")
    return found


def check_verdicts(section: Section) -> None:
    """Mini-batches that are skipped, by both updaters."""
    with section.attempt("all skipped"):
        trainer = make(section.device, "gpt2", sgd=False, ratio_threshold=1e-6)
        kind = type(trainer._updater)
        section.check("the verdict stays on the device", float(kind is not OnDeviceUpdater and section.on_gpu), 0)
        move, _ = moved(trainer, "gpt2")
        section.check("move, all mini-batches skipped", max(float(m.abs().max()) for m in move.values()), 0)
    with section.attempt("some skipped"):
        moves, skipped = [], []
        for kind in (OnDeviceUpdater, Updater):
            # mini-batches of the later epochs are skipped
            trainer = make(section.device, "gpt2", sgd=False, learning_rate=0.05, ratio_threshold=1.02)
            trainer._updater = kind(trainer._processes, trainer.model, trainer.optimizer, trainer.model_params,
                                    trainer.config)  # fmt: skip
            move, stats = moved(trainer, "gpt2")
            moves.append(move)
            skipped.append(float(stats["ppo/policy/skipped"]))
        section.check("move, some skipped, on the device against on the host", distance(*moves), 1e-6,
                      f"{skipped[0]:.0f} of 8 skipped")  # fmt: skip
        section.check("skipped, on the device against on the host", abs(skipped[0] - skipped[1]), 0)
        section.check("some are skipped and some are not", float(not 0 < skipped[0] < 8), 0)


def check_padding(section: Section, found: dict[str, dict[str, torch.Tensor]]) -> None:
    """Rows without padding, which a GPU takes by itself, against padded samples."""
    with section.attempt("rows without padding"):
        trainer = make(section.device, "llama")
        section.check("rows are packed by itself on a GPU", float(trainer._rows.no_padding != section.on_gpu), 0)
        plain = found.get("padded") or moved(make(section.device, "llama", padding_free=False), "llama")[0]
        section.check("move, without padding against padded", distance(found["padding-free"], plain), SAME)


def check_device_map(section: Section) -> None:
    """Layers on two GPUs of one process."""
    if not section.on_gpu or torch.cuda.device_count() < 2:
        section.absent("device_map over several GPUs", "there are no two GPUs")
        return
    with section.attempt("device_map over several GPUs"):
        from accelerate import dispatch_model

        single, _ = moved(make(section.device, "llama"), "llama")
        names = ("embed_tokens", "rotary_emb", "layers.0", "layers.1", "norm")
        places: dict[str, Any] = {f"model.{name}": int(i > 2) for i, name in enumerate(names)}
        apart, _ = moved(
            make(section.device, "llama", placed=lambda model: dispatch_model(model, {**places, "lm_head": 1})), "llama"
        )
        section.check("move, layers on two GPUs against one", distance(apart, single), SAME)


def check_scaler(section: Section) -> None:
    """Training in float16."""
    if not section.on_gpu:
        section.absent("fp16 with a loss scaler", "accelerate has fp16 on accelerators only")
        return
    with section.attempt("fp16"):
        half, _ = moved(make(section.device, "llama", precision="fp16"), "llama")
        single, _ = moved(make(section.device, "llama"), "llama")
        section.check("move, fp16 with a loss scaler against float32", distance(half, single), 0.05)
    with section.attempt("fp16 that overflows"):
        once = {"ppo_epochs": 1, "mini_batch_size": 8}
        scaler = GradScalerKwargs(init_scale=2.0**120)
        trainer = make(section.device, "llama", precision="fp16", handlers=[scaler], **once)
        move, _ = moved(trainer, "llama")
        section.check("move, all gradients infinite", max(float(m.abs().max()) for m in move.values()), 0)
        section.check("the loss scale falls", float(trainer.accelerator.scaler.get_scale() >= 2.0**120), 0)


def check_resume(section: Section) -> None:
    """A run that is saved and loaded goes on bit for bit."""
    with section.attempt("resume"), tempfile.TemporaryDirectory() as folder:
        torch.use_deterministic_algorithms(True)
        try:
            run = make(section.device, "llama", sgd=False)
            moved(run, "llama")
            run.save_state(folder)
            expected, _ = moved(run, "llama", seed=2)
            resumed = make(section.device, "llama", sgd=False)
            resumed.load_state(folder)
            move, _ = moved(resumed, "llama", seed=2)
            worst = max(float((move[name] - expected[name]).abs().max()) for name in expected)
            section.check("resumed, with deterministic algorithms", worst, 0, "largest difference of a move")
        finally:
            torch.use_deterministic_algorithms(False)


def check_generation(section: Section) -> None:
    """Greedy sampling: batches of any padding, with either cache, give what each prompt gives alone."""
    with section.attempt("generation"):
        trainer = make(section.device, "llama")
        queries, _, _ = tiny.batch()
        options: Any = {"return_prompt": False, "do_sample": False, "max_new_tokens": 8}
        alone = [trainer.generate(query, **options)[0].tolist() for query in queries]
        for cache in ("dynamic", "static"):
            together = trainer.generate(queries, cache_implementation=cache, **options)
            other = sum(a != b.tolist() for a, b in zip(alone, together, strict=True))
            section.check(f"greedy answers, {cache} cache, that differ from those alone", other, 0)


def check_parity(section: Section) -> None:
    """The recorded numbers of release 0.7.11, to rtol 1e-3 and atol 1e-5."""
    on_cpu = {} if section.on_gpu else {"accelerator_kwargs": {"cpu": True}}
    library = Library(trl_step, config={"exact_v07": True, **on_cpu})
    names = ["gpt2-lam", "gpt2-lora"] if section.tiny else list(CASES)
    for name in names:
        with section.attempt(f"release 0.7.11, {name}"):
            case = CASES[name]
            shape = SHAPES[case.shape].weights
            policy = load_weights(shape, "policy")
            steps = run_case(library, case, load_inputs(case.inputs), policy, load_weights(shape, "reference"))
            found = differences(name, steps, load_recording(name).steps, policy)
            section.check(f"release 0.7.11, {name}: numbers that differ", len(found), 0, found[0] if found else "")


def main() -> None:
    section = Section()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if path := os.environ.get(MOVES):
        torch.save({n: moved(make("cpu", m, **s), m)[0] for n, (m, s) in variants(section).items()}, path)
        return
    with cpu_moves(section) as expected:
        check_heads(section)
        check_verdicts(section)
        check_scaler(section)
        check_resume(section)
        check_generation(section)
        found = check_moves(section)
        with section.attempt("move against the CPU"):
            for name, move in expected().items():
                section.check(f"move, {name}, against the CPU", distance(found[name], move), SAME)
        check_padding(section, found)
        check_device_map(section)
    check_parity(section)


@contextmanager
def cpu_moves(section: Section) -> Iterator[Callable[[], dict[str, dict[str, torch.Tensor]]]]:
    """Gives the moves on the CPU once they are asked for; another process computes them, as accelerate has one device
    in a process."""
    if not section.on_gpu:
        section.absent("move against the CPU", "this is the CPU")
        yield dict
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "moves.pt")
        environment = {**os.environ, MOVES: str(file), "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen([sys.executable, *sys.argv], env=environment)

        def moves() -> dict[str, dict[str, torch.Tensor]]:
            if process.wait() != 0:
                raise RuntimeError(f"the process on the CPU ended with exit status {process.returncode}")
            return torch.load(file, weights_only=True)

        yield moves


if __name__ == "__main__":
    main()
