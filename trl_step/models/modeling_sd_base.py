"""Stable Diffusion as a policy: what `DDPOTrainer` asks of a pipeline, and a pipeline of diffusers that answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import torch

from trl_step.algorithms.denoising import Denoised, ddim_distribution, denoising_logprobs
from trl_step.core import randn_tensor
from trl_step.import_utils import require_diffusers, require_peft
from trl_step.models.notices import quiet_transformers

LORA_FILE = "pytorch_lora_weights.safetensors"
LORA_TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]


@dataclass
class DDPOPipelineOutput:
    """What a pipeline of `DDPOTrainer` returns for B prompts and S denoising steps."""

    images: Any
    """[B, 3, height, width], 0 to 1, with `output_type="pt"`"""
    latents: list[torch.Tensor]
    """S + 1 tensors [B, C, H, W]: before the first step, and after each"""
    log_probs: list[torch.Tensor]
    """S tensors [B] float32, of each step's latents"""


@dataclass
class DDPOSchedulerOutput:
    """A denoising step of B samples."""

    latents: torch.Tensor
    """after the step, [B, C, H, W]"""
    log_probs: torch.Tensor
    """of these latents, [B] float32"""


class DDPOStableDiffusionPipeline:
    """What `DDPOTrainer` asks of a pipeline; a subclass answers."""

    def __call__(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """Sample images; arguments are those of `StableDiffusionPipeline`."""
        raise self._missing("__call__")

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """A denoising step, or the log-prob of one that was made; see the function `scheduler_step`."""
        raise self._missing("scheduler_step")

    @property
    def unet(self) -> Any:
        """The network that predicts the noise."""
        raise self._missing("unet")

    @property
    def vae(self) -> Any:
        """The autoencoder between latents and images."""
        raise self._missing("vae")

    @property
    def tokenizer(self) -> Any:
        """Of the prompts."""
        raise self._missing("tokenizer")

    @property
    def scheduler(self) -> Any:
        """The sampler's time steps."""
        raise self._missing("scheduler")

    @property
    def text_encoder(self) -> Any:
        """Token ids to the embeddings that the network reads."""
        raise self._missing("text_encoder")

    @property
    def autocast(self) -> Any:
        """A function that makes a context for forward passes; None: accelerate's autocast."""
        raise self._missing("autocast")

    def set_progress_bar_config(self, *args: Any, **kwargs: Any) -> None:
        """Arguments of the tqdm bar over denoising steps."""
        raise self._missing("set_progress_bar_config")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save the pipeline into a folder."""
        raise self._missing("save_pretrained")

    def get_trainable_layers(self, *args: Any, **kwargs: Any) -> Any:
        """The module whose parameters train, or a list of parameters of the network."""
        raise self._missing("get_trainable_layers")

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save what trains. `DDPOTrainer` does not call it: it saves the parameters that train by itself."""
        raise self._missing("save_checkpoint")

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Load what `save_checkpoint` wrote. `DDPOTrainer` does not call it."""
        raise self._missing("load_checkpoint")

    def _missing(self, name: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} must implement {name}")


# --- a denoising step ----------------------------------------------------------------------------------------


def scheduler_step(
    self: Any,
    model_output: torch.Tensor,
    timestep: Union[int, torch.Tensor],
    sample: torch.Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Any = None,
    prev_sample: Union[torch.Tensor, None] = None,
) -> DDPOSchedulerOutput:
    """Make a denoising step, or give the log-prob of one that was made.

    Args:
        self: a `diffusers.DDIMScheduler` that knows its time steps
        model_output: what the network predicted, [B, C, H, W]
        timestep: one for all samples, or int64 [B]
        sample: the latents before the step, [B, C, H, W]
        eta: how much noise a step adds, 0 to 1
        use_clipped_model_output: take the noise from the clipped clean latents
        generator: of the noise; None draws from torch's own stream
        prev_sample: the latents after the step, if it was made already, [B, C, H, W]

    Raises:
        ValueError: the scheduler has no time steps yet, is not made for latents, or is given both a generator and the
            latents.
    """
    if self.num_inference_steps is None:
        raise ValueError("the scheduler has no time steps: call its set_timesteps first")
    if self.config.thresholding:
        raise ValueError("the scheduler thresholds pixels (thresholding=True), which latents do not take: set it False")
    if prev_sample is not None and generator is not None:
        raise ValueError("scheduler_step makes a step with a generator, or takes prev_sample: give one of the two")
    distribution = _distribution(self, model_output, timestep, sample, eta, use_clipped_model_output)
    if prev_sample is None:
        noise = randn_tensor(
            model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
        )
        # differs from v0.7: in 16 bits the log-prob was that of latents before they were rounded
        prev_sample = (distribution.mean + distribution.deviation * noise).to(sample.dtype)
    return DDPOSchedulerOutput(prev_sample, denoising_logprobs(prev_sample.detach().float(), distribution))


def _distribution(
    scheduler: Any,
    prediction: torch.Tensor,
    timestep: Union[int, torch.Tensor],
    latents: torch.Tensor,
    eta: float,
    noise_from_clipped: bool,
) -> Denoised:
    """That of the latents after a step, in float32."""
    config = scheduler.config
    here = torch.as_tensor(timestep, device=latents.device)
    # the last step goes to time step 0, not to the clean latents, where it would have no noise
    there = (here - config.num_train_timesteps // scheduler.num_inference_steps).clamp(min=0)
    products = scheduler.alphas_cumprod.to(latents.device)
    alpha, next_alpha = (
        products[steps].view(*steps.shape, *[1] * (latents.dim() - 1)) if steps.dim() else products[steps]
        for steps in (here, there)
    )
    return ddim_distribution(
        prediction.float(),
        latents.float(),
        alpha,
        next_alpha,
        eta,
        config.prediction_type,
        config.clip_sample_range if config.clip_sample else None,
        noise_from_clipped,
    )


@contextmanager
def _recorded(scheduler: Any) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Inside, `scheduler` makes its steps by `scheduler_step`; the two lists fill with latents and log-probs."""
    latents: list[torch.Tensor] = []
    log_probs: list[torch.Tensor] = []

    def step(
        model_output: torch.Tensor,
        timestep: Union[int, torch.Tensor],
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: Any = None,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor]:
        made = scheduler_step(scheduler, model_output, timestep, sample, eta, generator=generator)
        if not latents:
            latents.append(sample)
        latents.append(made.latents)
        log_probs.append(made.log_probs)
        return (made.latents,)

    scheduler.step = step
    try:
        yield latents, log_probs
    finally:
        del scheduler.step


def pipeline_step(
    self: Any,
    prompt: Union[str, list[str], None] = None,
    height: Union[int, None] = None,
    width: Union[int, None] = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: Union[str, list[str], None] = None,
    num_images_per_prompt: int = 1,
    eta: float = 0.0,
    generator: Any = None,
    latents: Union[torch.Tensor, None] = None,
    prompt_embeds: Union[torch.Tensor, None] = None,
    negative_prompt_embeds: Union[torch.Tensor, None] = None,
    output_type: str = "pil",
    **options: Any,
) -> DDPOPipelineOutput:
    """Call a pipeline of diffusers, and keep the latents and the log-prob of every denoising step.

    Args:
        self: a `diffusers.StableDiffusionPipeline` with a DDIM scheduler
        options: more arguments of its call, which explains all of them
    """
    with _recorded(self.scheduler) as (all_latents, log_probs):
        output = self(
            prompt=prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            eta=eta,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            output_type=output_type,
            **{**options, "return_dict": True},
        )
    return DDPOPipelineOutput(output.images, all_latents, log_probs)


# --- diffusers' pipeline -------------------------------------------------------------------------------------


class DefaultDDPOStableDiffusionPipeline(DDPOStableDiffusionPipeline):
    """A Stable Diffusion pipeline of diffusers whose network trains, by LoRA or as a whole.

    Its scheduler becomes a DDIM scheduler, it has no safety checker, and its weights are loaded in float32.

    Args:
        pretrained_model_name: folder, repository of the hub, or a `diffusers.StableDiffusionPipeline`
        pretrained_model_revision: branch or commit of the repository
        use_lora: train an adapter of rank 4 on the attention, and nothing else. An adapter that is saved with the model
            is loaded, and is what trains.

    Raises:
        ImportError: diffusers, or for LoRA peft, is missing.
    """

    def __init__(
        self, pretrained_model_name: Any, *, pretrained_model_revision: str = "main", use_lora: bool = True
    ) -> None:
        require_diffusers(type(self).__name__)

        with quiet_transformers():  # which recommends torchvision, for images that a pipeline reads
            from diffusers import DDIMScheduler, StableDiffusionPipeline

        self.use_lora = use_lora
        self.pretrained_model = pretrained_model_name
        self.pretrained_revision = pretrained_model_revision
        if isinstance(pretrained_model_name, StableDiffusionPipeline):
            self.sd_pipeline: Any = pretrained_model_name
        else:
            self.sd_pipeline = StableDiffusionPipeline.from_pretrained(
                pretrained_model_name,
                revision=pretrained_model_revision,
                dtype=torch.float32,
                safety_checker=None,
                requires_safety_checker=False,
            )
            self._load_adapter()
        self.use_lora = self.use_lora or self._has_adapter
        if self.use_lora:
            require_peft(f"{type(self).__name__} with use_lora=True")
        self.sd_pipeline.scheduler = DDIMScheduler.from_config(self.sd_pipeline.scheduler.config)
        self.sd_pipeline.safety_checker = None
        for frozen in (self.vae, self.text_encoder):
            frozen.requires_grad_(False)
        self.unet.requires_grad_(not self.use_lora)

    @property
    def _has_adapter(self) -> bool:
        return bool(getattr(self.unet, "peft_config", None))

    def _load_adapter(self) -> None:
        """The adapter that is saved with the model, if there is one."""
        name = str(self.pretrained_model)
        if Path(name).is_dir() and not (Path(name) / LORA_FILE).is_file():
            return
        with contextlib.suppress(OSError):  # a repository without that file
            self.sd_pipeline.load_lora_weights(name, weight_name=LORA_FILE, revision=self.pretrained_revision)

    def __call__(self, *args: Any, **kwargs: Any) -> DDPOPipelineOutput:
        """See `pipeline_step`."""
        return pipeline_step(self.sd_pipeline, *args, **kwargs)

    def scheduler_step(self, *args: Any, **kwargs: Any) -> DDPOSchedulerOutput:
        """See the function of that name."""
        return scheduler_step(self.sd_pipeline.scheduler, *args, **kwargs)

    @property
    def unet(self) -> Any:
        """The network that predicts the noise."""
        return self.sd_pipeline.unet

    @property
    def vae(self) -> Any:
        """The autoencoder between latents and images."""
        return self.sd_pipeline.vae

    @property
    def tokenizer(self) -> Any:
        """Of the prompts."""
        return self.sd_pipeline.tokenizer

    @property
    def scheduler(self) -> Any:
        """The DDIM scheduler."""
        return self.sd_pipeline.scheduler

    @property
    def text_encoder(self) -> Any:
        """Token ids to the embeddings that the network reads."""
        return self.sd_pipeline.text_encoder

    @property
    def autocast(self) -> Union[Callable[[], Any], None]:
        """With LoRA no autocast: the frozen weights have their 16 bits already."""
        return contextlib.nullcontext if self.use_lora else None

    def set_progress_bar_config(self, *args: Any, **kwargs: Any) -> None:
        """Arguments of the tqdm bar over denoising steps."""
        self.sd_pipeline.set_progress_bar_config(*args, **kwargs)

    def get_trainable_layers(self) -> Any:
        """The network, with its adapter if LoRA trains."""
        if self.use_lora:
            from peft import LoraConfig

            if not self._has_adapter:
                # differs from v0.7: a second adapter took the place of the one that was loaded with the model
                self.unet.add_adapter(
                    LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=LORA_TARGETS)
                )
            self.unet.set_adapter(self.unet.active_adapters())
        return self.unet

    # --- saving ----------------------------------------------------------------------------------------------

    def save_pretrained(self, output_dir: Any) -> None:
        """Save the whole pipeline, for `StableDiffusionPipeline.from_pretrained` and for this class.

        An adapter is in a file of its own, for this class and for the pipeline's `load_lora_weights`.
        """
        if self._has_adapter:
            self._save_adapter(output_dir)
        with self._base_unet():
            self.sd_pipeline.save_pretrained(output_dir)

    def _save_adapter(self, folder: Any) -> None:
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        self.sd_pipeline.save_lora_weights(save_directory=folder, unet_lora_layers=weights)

    @contextmanager
    def _base_unet(self) -> Iterator[None]:
        """Inside, the pipeline has the network without its adapter; both share their weights."""
        whole = self.unet
        if self._has_adapter:
            # differs from v0.7: the network was saved with the adapter inside, and the folder did not load
            with torch.device("meta"):
                plain = type(whole).from_config(whole.config)
            weights = {
                name.replace(".base_layer.", "."): tensor
                for name, tensor in whole.state_dict().items()
                if ".lora_" not in name
            }
            plain.load_state_dict(weights, assign=True)
            self.sd_pipeline.unet = plain
        try:
            yield
        finally:
            self.sd_pipeline.unet = whole

    def save_checkpoint(self, models: Sequence[Any], weights: Any, output_dir: Any) -> None:
        """A hook for `accelerate.Accelerator.register_save_state_pre_hook`; `DDPOTrainer` needs none."""
        (model,) = models
        if self.use_lora:
            self._save_adapter(output_dir)
        else:
            model.save_pretrained(Path(output_dir) / "unet")

    def load_checkpoint(self, models: Sequence[Any], input_dir: Any) -> None:
        """A hook for `accelerate.Accelerator.register_load_state_pre_hook`; `DDPOTrainer` needs none."""
        (model,) = models
        if self.use_lora:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(model, self._saved_adapter(input_dir))
        else:
            model.load_state_dict(type(model).from_pretrained(Path(input_dir) / "unet").state_dict())

    def _saved_adapter(self, folder: Any) -> Mapping[str, torch.Tensor]:
        """The weights that `_save_adapter` wrote, by PEFT's names."""
        from diffusers.utils import convert_unet_state_dict_to_peft

        weights, _ = self.sd_pipeline.lora_state_dict(folder, weight_name=LORA_FILE)
        return convert_unet_state_dict_to_peft({name.removeprefix("unet."): w for name, w in weights.items()})
