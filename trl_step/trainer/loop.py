"""The loop around `step`: data set, sampler, score, `step`, log, save. What RLOO and PPO with `train()` share.

Nothing of the algorithm is here: the settings become those of a `PPOTrainer` of the step API, which makes the updates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import torch

from trl_step.sampling.local import LocalSampler
from trl_step.sampling.sampler import Sampler, Samples
from trl_step.trainer.on_policy import checkpoints, tables
from trl_step.trainer.on_policy.config import OnPolicyConfig
from trl_step.trainer.on_policy.metrics import metrics_of
from trl_step.trainer.on_policy.optimizer import make_optimizer, make_scheduler
from trl_step.trainer.on_policy.prompts import Prompts, collate, loader_of, steps_of
from trl_step.trainer.on_policy.release import as_in_the_release
from trl_step.trainer.on_policy.run import Run
from trl_step.trainer.on_policy.scoring import Answers, Scorer
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.ppo_trainer import PPOTrainer
from trl_step.trainer.reports.hub import push_without_failing


class LoopStep(PPOTrainer):
    """The step of a loop: its data loader gives prompts, and the last batch of a pass may be smaller.

    Args:
        loop_args: the settings of the loop
        prompts_per_step: rows of a batch
        arguments: those of `PPOTrainer`
    """

    def __init__(self, loop_args: OnPolicyConfig, prompts_per_step: int, *arguments: Any, **named: Any) -> None:
        self.loop_args: Any = loop_args
        self.prompts_per_step = prompts_per_step
        super().__init__(*arguments, **named)

    def prepare_dataloader(self, dataset: Any, data_collator: Any = None) -> torch.utils.data.DataLoader:
        """A shuffling loader of `prompts_per_step` rows."""
        return loader_of(dataset, self.prompts_per_step, data_collator)


class OnPolicyTrainer:
    """Draws answers to the prompts of a data set, scores them, and updates the policy, until it has enough.

    Subclasses say what the updates are: `algorithm`, `answers` and `make_step_trainer`.

    Attributes:
        args: the settings
        step_trainer: the `PPOTrainer` of the step API that makes the updates

    Args:
        args: settings; the run-time fields are filled in
        processing_class: the tokenizer
        model: the policy: a causal language model, or a PeftModel
        ref_model: what the KL penalty is measured against; None: the model without its adapter, or a frozen copy
        reward_model: see `Scorer`
        train_dataset: rows with `input_ids`, a prompt's token ids
        data_collator: joins rows to a batch; None: for prompts of any length, and other columns as lists
        eval_dataset: rows for the tables of `generate_completions`, or a dictionary of several such
        optimizers: optimizer and scheduler; None: those of `args`
        callbacks: `transformers.TrainerCallback`s

    Raises:
        ValueError, TypeError: something that cannot work; the message names the argument or the field.
    """

    algorithm = "ppo"
    """of the metrics: `rloo` or `ppo`"""

    def __init__(
        self,
        args: Any,
        processing_class: Any,
        model: Any,
        ref_model: Any,
        reward_model: Any,
        train_dataset: Any,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: Optional[list[Any]] = None,
        value_model: Any = None,
    ) -> None:
        if not isinstance(args, OnPolicyConfig):
            raise TypeError(f"args must be an {OnPolicyConfig.__name__} such as RLOOConfig, got {type(args).__name__}")
        if ref_model is not None and ref_model is model:
            raise ValueError("the reference is the policy itself and would move with it: pass a copy, or None")
        for name, part in (("policy", model), ("reward_model", reward_model), ("processing_class", processing_class)):
            if part is None:
                raise ValueError(f"{name} is missing")
        self.args, self.processing_class, self.train_dataset, self.eval_dataset = (
            args, processing_class, train_dataset, eval_dataset
        )  # fmt: skip
        args.take_sizes(args.world_size)
        self.prompts_per_step = max((args.local_batch_size or 1) // self.answers, 1)
        schedule = self._schedule = steps_of(train_dataset, self.prompts_per_step, self.answers, args)
        args.total_episodes, args.num_total_batches = schedule.episodes, schedule.steps
        if args.run_name is None:
            args.run_name = f"{args.exp_name}__{args.seed}__{int(time.time())}"
        optimizer, scheduler = optimizers
        trained = torch.nn.ModuleList([part for part in (model, value_model) if part is not None])
        optimizer = optimizer or make_optimizer(args, trained)
        scheduler = scheduler or make_scheduler(args, optimizer, schedule.steps)
        self.step_trainer = self.step_class(
            args,
            self.prompts_per_step,
            PPOConfig(**{**args.step_settings, **self.algorithm_settings}),
            model,
            ref_model,
            processing_class,
            train_dataset,
            optimizer,
            data_collator or collate,
            lr_scheduler=scheduler,
            value_model=value_model,
        )
        self._processes = self.step_trainer._processes
        # the processes draw answers from streams of their own
        torch.manual_seed(args.seed + 100003 * self._processes.index)
        self._scorer = Scorer(
            reward_model, processing_class, args.local_rollout_forward_batch_size, self.step_trainer.current_device
        )
        self._prompts = Prompts(processing_class)
        step, is_local_main = self.step_trainer, self.accelerator.is_local_main_process
        parts = step.model, processing_class, step.optimizer, step.lr_scheduler
        self._run = Run(args, callbacks, self.is_world_process_zero(), is_local_main, *parts)

    # --- what a subclass says ------------------------------------------------------------------------------------

    step_class: type[LoopStep] = LoopStep
    step_trainer: Any

    @property
    def answers(self) -> int:
        """Answers to each prompt."""
        return 1

    @property
    def algorithm_settings(self) -> dict[str, Any]:
        """Settings of `PPOConfig` beside those that all loops have."""
        return {}

    def prepared(self, samples: Samples) -> Samples:
        """The answers, already scored, as `step` gets them."""
        return samples

    def shaped_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B] as `step` gets them."""
        return scores

    # --- parts ---------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The policy, as accelerate has wrapped it."""
        return self.step_trainer.model

    @property
    def tokenizer(self) -> Any:
        """The older name of `processing_class`."""
        return self.processing_class

    @property
    def accelerator(self) -> Any:
        """The `accelerate.Accelerator` of this process."""
        return self.step_trainer.accelerator

    @property
    def sampler(self) -> Sampler:
        """What draws answers: the policy in this process, or what was assigned, such as a server."""
        return self.step_trainer.sampler  # type: ignore[no-any-return]

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        self.step_trainer.sampler = sampler

    @property
    def optimizer(self) -> Any:
        """As accelerate has wrapped it."""
        return self.step_trainer.optimizer

    @property
    def lr_scheduler(self) -> Any:
        """As accelerate has wrapped it."""
        return self.step_trainer.lr_scheduler

    @property
    def state(self) -> Any:
        """A `transformers.TrainerState`, which also counts answers as `episode`."""
        return self._run.state

    @property
    def control(self) -> Any:
        """The `transformers.TrainerControl` that callbacks set."""
        return self._run.control

    @property
    def callback_handler(self) -> Any:
        """The `CallbackHandler` of transformers."""
        return self._run.handler

    def add_callback(self, callback: Any) -> None:
        """Add a `transformers.TrainerCallback`, or a class of one."""
        self._run.handler.add_callback(callback)

    def log(self, logs: dict[str, float]) -> None:
        """Add metrics to `state.log_history`, and give them to the callbacks."""
        self._run.log(logs)

    def is_world_process_zero(self) -> bool:
        """Whether this process writes files and logs."""
        return self._processes.is_main

    # --- the loop ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> None:
        """Make all steps of the run.

        Args:
            resume_from_checkpoint: a folder that a run with these settings saved, or True for the newest whole
                checkpoint in `args.output_dir`: go on from there, bit for bit on a CPU

        Raises:
            ValueError, RuntimeError: the reward failed, see `Scorer`; the weights are those of the last step.
        """
        args, episodes = self.args, self.answers * len(self.train_dataset)
        found = checkpoints.chosen(resume_from_checkpoint, args.output_dir)
        if found is not None:
            self.step_trainer.load_state(found / checkpoints.STATE)
        saved = None if found is None else found / checkpoints.LOG
        self._run.begin(saved, self._schedule.steps, self._schedule.episodes / episodes)
        started, before = time.time(), self.state.episode
        rows = self._rows()
        self._run.call("on_train_begin")
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self._run.call("on_step_begin")
            metrics = self._one_step(next(rows))
            metrics["eps"] = (self.state.episode - before) / max(time.time() - started, 1e-9)
            self.state.global_step += 1
            self.state.epoch = self.state.episode / episodes
            self.log(metrics_of(self.algorithm, metrics, metrics))
            self._run.call("on_step_end")
            if self.control.should_save:
                self.save_checkpoint()
            every = max(self.state.max_steps // max(args.num_sample_generations, 1), 1)
            if args.num_sample_generations and (self.state.global_step - 1) % every == 0:
                self.generate_completions(sampling=True)
        self._run.call("on_train_end")

    def _one_step(self, batch: Any) -> dict[str, Any]:
        """Answers to a batch of prompts, their scores, and the update; everything that is logged of it."""
        args, step, processes = self.args, self.step_trainer, self._processes
        left = math.ceil((self._schedule.episodes - self.state.episode) / (processes.count * self.answers))
        queries, columns = self._prompts(batch, at_most=max(left, 1))
        samples = self.draw(queries, self.answers)
        if args.exact:
            samples = as_in_the_release(samples, self.answers, args, self.processing_class)
        scores = self._scores(samples, columns)
        shaped = self.shaped_scores(scores)
        given = self.prepared(samples)
        stats = step.step(
            given.queries,
            given.responses,
            list(shaped),
            group_ids=[(processes.index, number) for number in samples.group_ids] if self.answers > 1 else None,
        )
        counts = torch.tensor(
            [len(scores), float(scores.sum()), float(shaped.sum()), float(sum(samples.ended))], dtype=torch.float64
        )
        number, total, of_shaped, ended = processes.sum(counts.float()).tolist()
        self.state.episode += int(number)
        penalty = -step.config.init_kl_coef * stats["objective/kl"]
        return {
            **stats,
            "objective/scores": total / number,
            "objective/non_score_reward": penalty,
            "objective/rlhf_reward": of_shaped / number + penalty,
            "val/num_eos_tokens": ended,
            "lr": stats["ppo/learning_rate"],
            "episode": self.state.episode,
        }

    def draw(self, queries: list[torch.Tensor], n: int = 1) -> Samples:
        """`n` answers to each query [Q_i] by `sampler`, at the settings of the run; a subclass may override it.

        An answer ends with the tokenizer's end token, the model's, or `stop_token_id`.
        """
        args, step = self.args, self.step_trainer
        more: dict[str, Any] = {} if args.stop_token_id is None else {"eos_token_id": args.stop_token_id}
        if isinstance(step.sampler, LocalSampler):
            more |= {"batch_size": args.local_rollout_forward_batch_size, "return_logprobs": False}
        lengths = {"max_new_tokens": args.response_length, "temperature": args.temperature}
        return step.sample(queries, n, do_sample=True, top_k=0, top_p=1.0, **lengths, **more)  # type: ignore[no-any-return]

    def _scores(self, samples: Samples, columns: dict[str, list[Any]]) -> torch.Tensor:
        """[N] float32, `missing_eos_penalty` subtracted; all processes raise if one of them cannot score."""
        own = {name: [values[i] for i in samples.group_ids] for name, values in columns.items()}
        answers = Answers(samples.queries, samples.responses, own)
        found: list[float] = []
        self._processes.together(lambda: found.extend(self._scorer(answers)))
        scores = torch.tensor(found)
        if self.args.missing_eos_penalty is not None:
            scores -= self.args.missing_eos_penalty * ~torch.tensor(samples.ended)
        return scores

    def _rows(self) -> Iterator[Any]:
        """Batches of the data set, pass after pass."""
        while True:
            yield from self.step_trainer.dataloader

    def generate_completions(self, sampling: bool = False) -> dict[str, list[Any]]:
        """Show a table of the likeliest answers to `eval_dataset` and their scores; it draws no random number.

        Args:
            sampling: answer the first `per_device_eval_batch_size` prompts only

        Returns:
            the columns `query`, `model response` and `score`, on every process those of all
        """
        table: dict[str, list[Any]] = {"query": [], "model response": [], "score": []}
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        size, decode = self.args.per_device_eval_batch_size, self.processing_class.batch_decode
        for dataset in (one for one in sets.values() if one is not None):
            for start in range(0, min(len(dataset), size) if sampling else len(dataset), size):
                rows = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
                queries, columns = self._prompts(collate(rows))
                more = {} if self.args.stop_token_id is None else {"eos_token_id": self.args.stop_token_id}
                responses = self.step_trainer.generate(
                    queries, return_prompt=False, do_sample=False, max_new_tokens=self.args.response_length, **more
                )
                table["query"] += decode(queries, skip_special_tokens=True)
                table["model response"] += decode(responses)
                table["score"] += self._scorer(Answers(queries, responses, columns))
        if self.is_world_process_zero() and table["query"]:
            tables.show(table)
            tables.log_to_wandb(table)
        return table

    # --- saving --------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: Optional[str] = None) -> None:
        """Write the policy, its critic in `value_model`, and the tokenizer into a folder, by default `output_dir`."""
        self.step_trainer.save_pretrained(output_dir or self.args.output_dir)

    def save_checkpoint(self) -> None:
        """Write `output_dir/checkpoint-<step>`: what `save_model` writes, and what `train` goes on from."""
        args, folder = self.args, checkpoints.folder_of(self.args.output_dir, self.state.global_step)
        self.save_model(str(folder))
        if not args.save_only_model:
            self.step_trainer.save_state(folder / checkpoints.STATE)
        if self.is_world_process_zero():
            self.state.save_to_json(str(folder / checkpoints.LOG))
            self.create_model_card(model_name=Path(args.output_dir).name)
            checkpoints.prune(args.output_dir, args.save_total_limit)
        self._processes.wait()
        if args.push_to_hub:
            push_without_failing(self.step_trainer.push_to_hub, self._repo_id, **self._push_options)
        self.control.should_save = False
        self._run.call("on_save")

    @property
    def _repo_id(self) -> str:
        return self.args.hub_model_id or Path(self.args.output_dir).name

    @property
    def _push_options(self) -> dict[str, Any]:
        return {"private": self.args.hub_private_repo, "token": self.args.hub_token}

    def push_to_hub(self, commit_message: str = "End of training", **kwargs: Any) -> str:
        """Upload what `save_model` writes to `args.hub_model_id`, by default named as `output_dir`; the address."""
        options = {**self._push_options, "commit_message": commit_message, **kwargs}
        return self.step_trainer.push_to_hub(self._repo_id, **options)

    def create_model_card(
        self, model_name: Optional[str] = None, dataset_name: Optional[str] = None, tags: Any = None
    ) -> None:
        """Write README.md into `output_dir`; needs no network.

        Args:
            model_name: its title; None: the name of `output_dir`
            dataset_name: of the prompts
            tags: one more tag, or several
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        self.step_trainer.create_model_card(str(folder), model_name or folder.name)
        added = [tags] if isinstance(tags, str) else list(tags or [])
        path = folder / "README.md"
        text = path.read_text(encoding="utf-8")
        listed = "".join(f"- {tag}\n" for tag in (self.algorithm, *added) if f"\n- {tag}\n" not in text)
        data = "" if dataset_name is None else f"datasets:\n- {dataset_name}\n"
        path.write_text(text.replace("tags:\n", f"{data}tags:\n{listed}", 1), encoding="utf-8")
