"""Runs beside a release of TRL: `train()` of its on-policy trainer, two updates, on fixed weights and completions.

    python -m tests.parity.on_policy_recorder ppo tests/parity/data

Only the draw of `torch.multinomial` is replaced, and only inside `generate`. All else is the release's own code; what
it computed is read from the frame of `train()` when it calls backward.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import transformers
import trl.trainer.utils
from datasets import Dataset

from tests.parity import on_policy_inputs as inputs
from tests.parity.on_policy_cases import CASES, COMMON, TRAINERS, OnPolicyCase
from tests.parity.on_policy_recording import write
from tests.parity.recording import excess

ROLLOUT = (
    "query_responses",
    "postprocessed_responses",
    "logprobs",
    "ref_logprobs",
    "values",
    "scores",
    "sequence_lengths",
    "padding_mask",
    "padding_mask_p1",
    "kl",
    "non_score_reward",
    "rewards",
    "rlhf_reward",
    "advantages",
    "returns",
)
"""Local variables of `train()` that are recorded of each update, as far as the trainer has them."""
LOSSES = ("loss", "pg_loss", "vf_loss")
"""The same of each micro-batch."""
RUN_TIME = ("output_dir", "logging_dir", "run_name", "exp_name", "hub_token", "accelerator_config")
LARGEST_SENSITIVITY = 0.5
"""A change of one rounding in the weights may move a number by this share of the tolerance of a replay.

The most sensitive one is RLOO's loss at ratio 1: the advantages of a group add to nothing, and rounding is left.
"""


def classes(trainer: str) -> tuple[Any, Any, Any]:
    """Configuration, trainer, and the module of the trainer."""
    if trainer == "ppov2":
        from trl import PPOv2Config, PPOv2Trainer

        return PPOv2Config, PPOv2Trainer, sys.modules[PPOv2Trainer.__module__]
    if trainer == "rloo":
        from trl import RLOOConfig, RLOOTrainer

        return RLOOConfig, RLOOTrainer, sys.modules[RLOOTrainer.__module__]
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    return PPOConfig, PPOTrainer, sys.modules[PPOTrainer.__module__]


class Observer(transformers.TrainerCallback):
    """Keeps the numbers of a run.

    Attributes:
        arrays: `<update>/<name>` -> array
        texts: what the reward function was given, of all updates
    """

    def __init__(self, sampling: inputs.PinnedSampling) -> None:
        self.sampling = sampling
        self.arrays: dict[str, np.ndarray] = {}
        self.texts: list[str] = []
        self.update = 1
        self.raw_scores: list[torch.Tensor] = []
        self.micro_batches: list[dict[str, Any]] = []
        self.steps_after: list[int] = []

    def reward_function(self, texts: list[str]) -> list[float]:
        self.texts += texts
        scores = inputs.reward_function(texts)
        self.raw_scores.append(torch.tensor(scores))
        return scores

    def get_reward(self, original: Callable[..., Any], reward_model: Any) -> Callable[..., Any]:
        """`get_reward` of the release, which also reads the values."""

        def observed(model: Any, *rest: Any) -> Any:
            found = original(model, *rest)
            if model is reward_model:
                self.raw_scores.append(found[1].clone())
            return found

        return observed

    def saw_backward(self, frame: FrameType) -> None:
        """Called where `train()` calls backward."""
        found = frame.f_locals
        if not self.micro_batches:
            queries = found["queries"]
            self.keep("prompts", self.sampling.prompt_numbers(queries))
            self.keep("context_length", torch.tensor(queries.shape[1]))
            self.keep("raw_scores", torch.cat(self.raw_scores))
            for name in ROLLOUT:
                if name in found:
                    self.keep(name, found[name])
        rows = torch.from_numpy(found["micro_batch_inds"].copy())
        self.micro_batches.append({"order": rows} | {name: found[name] for name in LOSSES if name in found})

    def saw_optimizer_step(self, *_: Any) -> None:
        self.steps_after.append(len(self.micro_batches))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        for name in self.micro_batches[0]:
            self.keep(name, torch.stack([each[name].detach() for each in self.micro_batches]))
        self.keep("steps_after", torch.tensor(self.steps_after))
        self.update += 1
        self.raw_scores, self.micro_batches, self.steps_after = [], [], []

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        array = tensor.detach().clone().numpy()
        self.arrays[f"{self.update}/{name}"] = array if array.dtype == np.float32 else array.astype(np.int64)


@contextmanager
def pinned(module: Any, observer: Observer, reward_model: Any) -> Iterator[None]:
    """Inside, `generate` draws what `observer.sampling` says."""
    utils = trl.trainer.utils
    generate, multinomial, get_reward = utils.generate, torch.multinomial, module.get_reward

    def pinned_generate(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        columns = iter(observer.sampling.take(queries).T)
        torch.multinomial = lambda probabilities, num_samples: next(columns).unsqueeze(1)
        try:
            return generate(model, queries, *rest)
        finally:
            torch.multinomial = multinomial

    utils.generate, module.get_reward = pinned_generate, observer.get_reward(get_reward, reward_model)
    try:
        yield
    finally:
        utils.generate, module.get_reward = generate, get_reward


def perturbed(model: Any, by_rounding: bool) -> Any:
    """The same model, or one whose weights are all one rounding larger."""
    if by_rounding:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, torch.inf)))
    return model


def run(trainer: str, case: OnPolicyCase, by_rounding: bool = False) -> dict[str, Any]:
    """Two updates of a case: `options`, `log`, `texts`, `arrays`."""
    config_class, trainer_class, module = classes(trainer)
    settings = {**COMMON, **case.settings}
    copies = settings.get("rloo_k", 2) if trainer == "rloo" else 1
    observer = Observer(inputs.PinnedSampling(copies, case.end))
    policy = perturbed(inputs.policy(case.shape), by_rounding)
    reference = inputs.reference(case.shape) if case.reference else None
    data = Dataset.from_dict({"input_ids": inputs.prompts()[: case.prompts]})
    reward: Any = observer.reward_function if case.reward == "function" else inputs.reward_model(case.shape)
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder, report_to=[], save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, **settings
        )
        named: dict[str, Any] = {"train_dataset": data, "eval_dataset": data, "callbacks": [observer]}
        if trainer != "rloo":
            named["value_model"] = perturbed(inputs.value_model(case.shape), by_rounding)
        np.random.seed(0)  # the release shuffles with NumPy's stream, which it does not seed
        made = trainer_class(config, inputs.tokenizer(), policy, reference, reward, **named)
        made.optimizer.optimizer.register_step_post_hook(observer.saw_optimizer_step)
        backward = made.accelerator.backward

        def observed_backward(loss: torch.Tensor) -> None:
            observer.saw_backward(sys._getframe(1))
            backward(loss)

        made.accelerator.backward = observed_backward
        with pinned(module, observer, reward):
            made.train()
        log = [{key: value for key, value in row.items() if key != "eps"} for row in made.state.log_history]
        options = {name: value for name, value in vars(config).items() if is_plain(value) and name not in RUN_TIME}
    trained = {"policy": policy} if trainer == "rloo" else {"policy": policy, "value_model": named["value_model"]}
    weights = {
        f"weights/{part}.{inputs.today(name)}": parameter.detach().numpy().copy()
        for part, model in trained.items()
        for name, parameter in model.named_parameters()
    }
    return {"options": options, "log": log, "texts": observer.texts, "arrays": {**observer.arrays, **weights}}


def is_plain(value: Any) -> bool:
    """Whether JSON can hold it as it is."""
    return value is None or type(value) in (bool, int, float, str)


def sensitivity(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between two runs in units of a replay's tolerance."""
    arrays = [excess(one["arrays"][name], other["arrays"][name]).max() for name in one["arrays"]]
    rows = zip(one["log"], other["log"], strict=True)
    return float(max([*arrays, *(excess(row[key], again[key]) for row, again in rows for key in row)]))


def main(trainer: str, folder: Path) -> None:
    """Run every case of one trainer and write `on_policy_<trainer>.npz` and `.json`."""
    if version("trl") != TRAINERS[trainer]:
        raise SystemExit(f"{trainer} is recorded with trl {TRAINERS[trainer]}, this is {version('trl')}")
    runs = {}
    for name, case in CASES[trainer].items():
        runs[name] = run(trainer, case)
        moved = sensitivity(runs[name], run(trainer, case, by_rounding=True))
        print(f"{trainer} {name}: moves by {moved:.3f} of the tolerance", flush=True)
        if moved > LARGEST_SENSITIVITY:
            raise SystemExit(f"{trainer} {name}: one rounding in the weights moves a number by {moved:.2f} of it")
        runs[name]["sensitivity"] = moved
    versions = {package: version(package) for package in ("trl", "torch", "transformers", "accelerate")}
    write(folder, trainer, versions, runs)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
