"""`DDPOTrainer`: policy gradients on a diffusion model. Its `step` samples images, scores them, and trains on them.

Every denoising step is an action of the policy; all steps of a sample share the advantage of its image. The parts:

- `algorithms/denoising.py`: the distribution and the log-prob of a denoising step
- `models/modeling_sd_base.py`: a pipeline of diffusers that keeps latents and log-probs
- `trainer/diffusion/`: samples, rewards, the parameters that train
- `updates/`, `processes/`, `runs/`, `reports/`: as for every trainer with a `step`, see `ppo_trainer.py`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Optional

import numpy as np
import torch

from trl_step.algorithms.denoising import guided
from trl_step.algorithms.losses.policy import Clip, clipped_ratio_losses
from trl_step.algorithms.objective import minibatch_weights
from trl_step.algorithms.prompt_stats import PerPromptStatTracker, batch_advantages
from trl_step.algorithms.stats import DDPO_STATS
from trl_step.core import set_seed
from trl_step.models.modeling_sd_base import DDPOStableDiffusionPipeline
from trl_step.models.notices import warn_user
from trl_step.models.sharding import is_sharded
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.trainer.ddpo_config import DDPOConfig
from trl_step.trainer.diffusion.card import MODEL_CARD_TEMPLATE, write_model_card
from trl_step.trainer.diffusion.old_parts import OldParts
from trl_step.trainer.diffusion.rewards import RewardFunction, Scored, scored
from trl_step.trainer.diffusion.samples import (
    DenoisingBatch,
    DenoisingSamples,
    Order,
    as_drawn,
    joined,
    shuffled,
    take,
)
from trl_step.trainer.diffusion.settings import shared_settings
from trl_step.trainer.diffusion.trained import TrainedPart
from trl_step.trainer.processes.accelerate_state import detach
from trl_step.trainer.reports.callbacks import StepReport, call_all
from trl_step.trainer.runs import folder as state_folder
from trl_step.trainer.runs.identity import identity, settings_of
from trl_step.trainer.step_trainer import StepTrainer
from trl_step.trainer.updates.epochs import mini_batches
from trl_step.trainer.updates.optimizers import fused_if_possible, make_updater

__all__ = ["MODEL_CARD_TEMPLATE", "DDPOTrainer"]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
REMEDY = 'the network overflows or its weights are no numbers: try mixed_precision="no" or a lower train_learning_rate'


class DDPOTrainer(OldParts, StepTrainer):
    """Tunes a Stable Diffusion pipeline with DDPO (Black et al. 2023, https://arxiv.org/abs/2305.13301).

    Args:
        config: settings
        reward_function: images [B, 3, height, width], prompts and prompt metadata of a batch -> B rewards, and metadata
            of them for the hook
        prompt_function: called for each sample; returns a prompt and its metadata
        sd_pipeline: what trains
        image_samples_hook: called before each update with a list of [images, prompts, prompt metadata, rewards, reward
            metadata] for each batch, the global step, and the tracker (None if there is none); on the main process

    Raises:
        ValueError: a setting cannot work here; the message names it.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "ddpo"]
    _tracked_as = "ddpo_trainer_config"
    _tracked_keys = DDPO_STATS

    def __init__(
        self,
        config: DDPOConfig,
        reward_function: RewardFunction,
        prompt_function: Callable[[], tuple[str, Any]],
        sd_pipeline: DDPOStableDiffusionPipeline,
        image_samples_hook: Optional[Callable[[Any, Any, Any], Any]] = None,
    ) -> None:
        if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
            raise ValueError('mixed_precision="fp16" needs a GPU: set "no" (or "bf16") to train on the CPU')
        super().__init__(config, shared_settings(config))
        self.prompt_fn, self.reward_fn = prompt_function, reward_function
        self.image_samples_callback = image_samples_hook
        self.sd_pipeline = sd_pipeline
        self.num_train_timesteps = config.trained_steps
        if not config.train_cfg and config.sample_guidance_scale > 1:
            warn_user(
                f"train_cfg=False trains the network without guidance, but samples are drawn with "
                f"sample_guidance_scale={config.sample_guidance_scale:g}: ratios do not start at 1. Set the scale to 1"
            )
        set_seed(config.seed + self._processes.index)  # each process draws samples of its own
        sd_pipeline.set_progress_bar_config(
            position=1,
            disable=not self.accelerator.is_local_main_process,
            leave=False,
            desc="Timestep",
            dynamic_ncols=True,
        )
        if config.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        self._place_models()
        self.neg_prompt_embed = self._embedded(self._token_ids([config.negative_prompts or ""]))
        self.autocast = sd_pipeline.autocast or self.accelerator.autocast
        self.stat_tracker = (
            PerPromptStatTracker(config.per_prompt_stat_tracking_buffer_size, config.per_prompt_stat_tracking_min_count)
            if config.per_prompt_stat_tracking
            else None
        )
        self._start_run()
        self.first_epoch = 0
        if config.resume_from:
            self.load_state(self._state_to_resume(config.resume_from))

    def _place_models(self) -> None:
        """Everything on the device: what is frozen in the run's precision, what trains in float32; and the updater."""
        pipeline, device = self.sd_pipeline, self.accelerator.device
        dtype = DTYPES.get(self.config.mixed_precision, torch.float32)
        trainable = pipeline.get_trainable_layers()
        chosen = trainable.parameters() if isinstance(trainable, torch.nn.Module) else trainable
        self.trainable_layers = [parameter for parameter in chosen if parameter.requires_grad]
        if not self.trainable_layers:
            raise ValueError("sd_pipeline.get_trainable_layers() has no parameter with requires_grad=True")
        for model in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            model.to(device)
            for parameter in model.parameters():
                # differs from v0.7: with use_lora=False the weights were float16, which a loss scaler refuses
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
        self._policy = TrainedPart(pipeline.unet)
        self._unet, self.optimizer = self.accelerator.prepare(
            pipeline.unet, self._setup_optimizer(self.trainable_layers)
        )
        if is_sharded(self.accelerator.unwrap_model(self._unet)):
            raise ValueError("DDPOTrainer does not train sharded weights: start it with DDP, without FSDP or DeepSpeed")
        detach(self.accelerator, self.optimizer)
        self._updater = make_updater(self._processes, self._unet, self.optimizer, self.trainable_layers, self._settings)
        self._updater.remedy = REMEDY

    def _setup_optimizer(self, trainable_layers_parameters: Any) -> torch.optim.Optimizer:
        config = self.config
        options = {
            "lr": config.train_learning_rate,
            "betas": (config.train_adam_beta1, config.train_adam_beta2),
            "weight_decay": config.train_adam_weight_decay,
            "eps": config.train_adam_epsilon,
        }
        if config.train_use_8bit_adam:
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(trainable_layers_parameters, **options)
        return fused_if_possible(torch.optim.AdamW, trainable_layers_parameters, **options)

    # --- what the run keeps --------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        return {
            **super()._parts(),
            "policy": self._policy,
            "optimizer": self.optimizer,
            "prompt_statistics": self.stat_tracker,
        }

    def _identity(self) -> dict[str, Any]:
        return identity(
            processes=self._processes,
            settings=settings_of(self.config),
            policy=self._policy,
            reference=None,
            optimizer=self.optimizer,
            scheduler=None,
            kl_controller=None,
            dataset=None,
            loader=None,
            mixed_precision=self.accelerator.mixed_precision,
        )

    def load_state(self, folder: Any, *, may_differ: Sequence[str] = ()) -> int:
        """As `StepTrainer.load_state`; `train` goes on with the epoch after the saved one."""
        self.first_epoch = super().load_state(folder, may_differ=may_differ)
        return self.first_epoch

    def _state_to_resume(self, named: str) -> Path:
        """The folder itself if it holds a state, else the newest state in it."""
        folder = Path(named).expanduser()
        if (folder / state_folder.MANIFEST).is_file():
            return folder
        for place in (folder, folder / "checkpoints"):
            found = state_folder.newest(place) if place.is_dir() else None
            if found is not None:
                return found.parent
        raise ValueError(
            f"resume_from={named!r} holds no complete checkpoint of trl_step; those of TRL are not read, as they hold "
            "pickles"
        )

    # --- the loop ------------------------------------------------------------------------------------------------

    def train(self, epochs: Optional[int] = None) -> None:
        """Call `step` for each epoch up to `epochs`, or `config.num_epochs`."""
        global_step = self.current_step
        for epoch in range(self.first_epoch, self.config.num_epochs if epochs is None else epochs):
            global_step = self.step(epoch, global_step)

    def step(self, epoch: int, global_step: int) -> int:
        """Sample images, score them, train on them, log, and save a checkpoint if it is time.

        Args:
            epoch: number of this one, for the log
            global_step: updates of the weights so far, under which values are logged

        Returns:
            `global_step` after the updates

        Raises:
            ValueError: the reward function raised or returned what is no reward; weights are untouched.
        """
        with self._autosave:
            # 1. samples
            batches, images = self._generate_samples(
                self.config.sample_num_batches_per_epoch, self.config.sample_batch_size
            )
            samples = joined(batches)
            # 2. rewards of all processes, and the advantages of this one's samples
            rewards, advantages, stats = self._judged(images, global_step)
            self._trackers.log({**stats, "epoch": epoch}, global_step)
            # 3. updates
            order = as_drawn(samples)
            for inner_epoch in range(self.config.train_num_inner_epochs):
                order = shuffled(order)
                self._updater.reset()
                for numbers in self._train_epoch(samples, advantages, order):
                    stats.update(numbers)
                    self._trackers.log({**numbers, "epoch": epoch, "inner_epoch": inner_epoch}, global_step)
                    global_step += 1
                self._updater.finish()
            self.steps_done, self.current_step = self.steps_done + 1, global_step
            # 4. reports
            report = StepReport(self, self.steps_done, stats, list(samples.prompt_ids), [], rewards)
            call_all(self._callbacks, report, self._failed_callbacks)
        return global_step

    # --- stage 1: samples ----------------------------------------------------------------------------------------

    def _token_ids(self, texts: Sequence[str]) -> torch.Tensor:
        """int64 [B, L], padded or cut to the tokenizer's length."""
        tokenizer = self.sd_pipeline.tokenizer
        tokens = tokenizer(
            list(texts),
            return_tensors="pt",
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
        )
        return tokens.input_ids.to(self.accelerator.device)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _embedded(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[B, L, D]"""
        return self.sd_pipeline.text_encoder(token_ids)[0]  # type: ignore[no-any-return]

    def _generate_samples(self, iterations: int, batch_size: int) -> tuple[list[DenoisingSamples], list[list[Any]]]:
        """`iterations` batches of `batch_size` samples, and for each [images, prompts, prompt metadata]."""
        batches, images = [], []
        negative = self.neg_prompt_embed.repeat(batch_size, 1, 1)
        with eval_mode(self.sd_pipeline.unet):
            for _ in range(iterations):
                prompts, metadata = zip(*(self.prompt_fn() for _ in range(batch_size)), strict=True)
                token_ids = self._token_ids(prompts)
                embeds = self._embedded(token_ids)
                with self.autocast():
                    output = self.sd_pipeline(
                        prompt_embeds=embeds,
                        negative_prompt_embeds=negative,
                        num_inference_steps=self.config.sample_num_steps,
                        guidance_scale=self.config.sample_guidance_scale,
                        eta=self.config.sample_eta,
                        output_type="pt",
                    )
                latents = torch.stack(output.latents, dim=1)  # [B, S + 1, C, H, W]
                timesteps = self.sd_pipeline.scheduler.timesteps.repeat(batch_size, 1)
                log_probs = torch.stack(output.log_probs, dim=1)
                batches.append(
                    DenoisingSamples(token_ids, embeds, timesteps, latents[:, :-1], latents[:, 1:], log_probs)
                )
                images.append([output.images, prompts, metadata])
        return batches, images

    # --- stage 2: rewards and advantages -------------------------------------------------------------------------

    def compute_rewards(
        self, prompt_image_pairs: Sequence[Sequence[Any]], is_async: bool = False
    ) -> tuple[tuple[torch.Tensor, ...], tuple[Any, ...]]:
        """Rewards [B] float64 of each batch, and the metadata that the reward function returned with them.

        Args:
            prompt_image_pairs: [images, prompts, prompt metadata] of each batch
            is_async: score batches side by side, in `config.max_workers` threads

        Raises:
            ValueError: the reward function raised, or did not return one finite number for each image.
        """
        found: list[Scored] = scored(self.reward_fn, prompt_image_pairs, self.config.max_workers if is_async else None)
        return tuple(rewards for rewards, _ in found), tuple(metadata for _, metadata in found)

    def _judged(self, images: list[list[Any]], global_step: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Rewards [B] float64 on the CPU and advantages [B] float32 of this process's samples, and statistics."""

        def judge() -> tuple[list[str], list[float]]:
            rewards, metadata = self.compute_rewards(images, self.config.async_reward_computation)
            for batch, of_batch, more in zip(images, rewards, metadata, strict=True):
                batch.extend([of_batch, more])
            if self.image_samples_callback is not None and self._processes.is_main:
                # differs from v0.7: without a tracker, and on every process but the first, the call was an IndexError
                trackers = self.accelerator.trackers
                self.image_samples_callback(images, global_step, trackers[0] if trackers else None)
            return [prompt for batch in images for prompt in batch[1]], torch.cat(rewards).tolist()

        judged = self._processes.together(judge)
        prompts = [prompt for names, _ in judged for prompt in names]
        rewards = np.array([reward for _, numbers in judged for reward in numbers])
        # differs from v0.7: prompts were told apart by their tokens, cut to the tokenizer's length
        tracker = self.stat_tracker
        advantages = batch_advantages(rewards) if tracker is None else tracker.update(prompts, rewards)
        first = sum(len(numbers) for _, numbers in judged[: self._processes.index])
        own = slice(first, first + len(judged[self._processes.index][1]))
        stats = {"reward": rewards, "reward_mean": float(rewards.mean()), "reward_std": float(rewards.std())}
        return (
            torch.from_numpy(rewards[own]),
            torch.as_tensor(advantages[own], dtype=torch.float32, device=self.accelerator.device),
            stats,
        )

    @property
    def _guides(self) -> bool:
        """Whether training uses the negative prompt."""
        # differs from v0.7: with a scale below 1, which samples without guidance, it was trained with guidance
        return self.config.train_cfg and self.config.sample_guidance_scale > 1

    # --- stage 3: updates ----------------------------------------------------------------------------------------

    def _train_epoch(
        self, samples: DenoisingSamples, advantages: torch.Tensor, order: Order
    ) -> Iterator[dict[str, float]]:
        """One pass over the samples; after each update its mean `loss`, `approx_kl` and `clipfrac`."""
        config, processes, trained = self.config, self._processes, self.num_train_timesteps
        places = np.arange(len(order.rows))
        update_size = self._settings.backward_batch_size
        # differs from v0.7: dropout was on in training, so that ratios did not start at 1
        with eval_mode(self.sd_pipeline.unet):
            for parts in mini_batches(places, update_size, config.train_batch_size):
                sizes = torch.tensor([[len(part) * trained, len(part)] for part in parts], dtype=torch.float64)
                weights = minibatch_weights(sizes, processes.sum(sizes).cpu(), processes.count, "samples")
                numbers = torch.zeros(3, device=order.rows.device)
                for part, weight in zip(parts, weights, strict=True):
                    rows, times = order.rows[part], order.steps[part]
                    embeds = samples.prompt_embeds[rows]
                    if self._guides:
                        embeds = torch.cat([self.neg_prompt_embed.expand_as(embeds), embeds])
                    for j in range(trained):
                        batch = take(samples, advantages, rows, times[:, j])
                        with self._updater.minibatch(weight / trained, last=part is parts[-1] and j == trained - 1):
                            numbers += self._train_batch(batch, embeds) * (weight / trained)
                yield dict(zip(("loss", "approx_kl", "clipfrac"), processes.mean(numbers).tolist(), strict=True))

    def _train_batch(self, batch: DenoisingBatch, embeds: torch.Tensor) -> torch.Tensor:
        """Backward of one step of b samples, and the optimizer's step if it is due; loss, KL and clipped share [3]."""
        loss, approx_kl, clipfrac = self.calculate_loss(*batch, embeds=embeds)
        mask = torch.ones_like(batch.advantages)
        self._updater.update(loss, {"policy/ratio": mask}, mask)
        return torch.stack((loss.detach(), approx_kl.detach(), clipfrac)).float()

    def calculate_loss(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        next_latents: torch.Tensor,
        log_probs: torch.Tensor,
        advantages: torch.Tensor,
        embeds: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of one denoising step of b samples.

        Args:
            latents, next_latents: before and after the step, [b, C, H, W]
            timesteps: int64 [b]
            log_probs: of the step when it was sampled, [b]
            advantages: [b]
            embeds: of the prompts [b, L, D]; with guidance [2 b, L, D], those of the negative prompt first

        Returns:
            loss; mean of (log-prob - log-prob then)² / 2; share of ratios outside of the clip range; all 0-d
        """
        config = self.config
        with self.autocast():
            if self._guides:
                prediction = self._unet(torch.cat([latents] * 2), torch.cat([timesteps] * 2), embeds).sample
                prediction = guided(prediction, config.sample_guidance_scale)
            else:
                prediction = self._unet(latents, timesteps, embeds).sample
            log_prob = self.sd_pipeline.scheduler_step(
                prediction, timesteps, latents, eta=config.sample_eta, prev_sample=next_latents
            ).log_probs
        advantages = advantages.clamp(-config.train_adv_clip_max, config.train_adv_clip_max)
        ratio = torch.exp(log_prob - log_probs)
        loss = self.loss(advantages, config.train_clip_range, ratio)
        approx_kl = 0.5 * ((log_prob - log_probs) ** 2).mean()
        clipfrac = ((ratio - 1.0).abs() > config.train_clip_range).float().mean()
        return loss, approx_kl, clipfrac

    def loss(self, advantages: torch.Tensor, clip_range: float, ratio: torch.Tensor) -> torch.Tensor:
        """The mean clipped loss (0-d); see `algorithms.losses.policy.clipped_ratio_losses`.

        Args:
            advantages, ratio: [b]
        """
        return clipped_ratio_losses(ratio, advantages, Clip(clip_range)).losses.mean()

    # --- saving --------------------------------------------------------------------------------------------------

    def create_model_card(self, path: str, model_name: Optional[str] = "TRL DDPO Model") -> None:
        """Write README.md into `path`: what the model is and how to load it. Needs no network."""
        with_adapter = bool(getattr(self.sd_pipeline, "use_lora", False))
        write_model_card(path, model_name or "TRL DDPO Model", self.config, with_adapter)

    def _save_pretrained(self, save_directory: str) -> None:
        if self._processes.is_main:
            self.sd_pipeline.save_pretrained(save_directory)
            self.create_model_card(save_directory)
