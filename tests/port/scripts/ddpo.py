"""DDPO for brighter pictures: written for TRL 0.7 and the diffusers of its time."""

import sys
from dataclasses import dataclass, field

import numpy as np
import torch
import tyro
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
from trl.import_utils import is_npu_available, is_xpu_available
from trl.models.modeling_sd_base import DDPOPipelineOutput


@dataclass
class ScriptArguments:
    pretrained_model: str = "runwayml/stable-diffusion-v1-5"
    use_lora: bool = True
    ddpo_config: DDPOConfig = field(
        default_factory=lambda: DDPOConfig(
            num_epochs=2,
            train_gradient_accumulation_steps=1,
            sample_num_steps=2,
            sample_batch_size=2,
            train_batch_size=2,
            sample_num_batches_per_epoch=2,
            per_prompt_stat_tracking=True,
            per_prompt_stat_tracking_buffer_size=32,
            mixed_precision="no",
            tracker_project_name="stable_diffusion_training",
            log_with="tensorboard",
            project_kwargs={
                "logging_dir": "./logs",
                "automatic_checkpoint_naming": True,
                "total_limit": 5,
                "project_dir": "./save",
            },
        )
    )


args = tyro.cli(ScriptArguments)
rewards = []


def prompt_fn():
    return np.random.choice(["a cat", "a dog"]), {}


def brightness(images, prompts, metadata):
    assert images.shape[0] == len(prompts)
    rewards.extend(images.mean(dim=(1, 2, 3)).tolist())
    return images.mean(dim=(1, 2, 3)), {}


def image_outputs_logger(image_data, global_step, accelerate_logger):
    images, prompts, _, rewards, _ = image_data[-1]
    result = {}
    for i, image in enumerate(images):
        result[f"{prompts[i]:.25} | {rewards[i].item():.2f}"] = image.unsqueeze(0).float().permute(0, 2, 3, 1).numpy()
    accelerate_logger.log_images(result, step=global_step)


pipeline = DefaultDDPOStableDiffusionPipeline(args.pretrained_model, use_lora=args.use_lora)
trainer = DDPOTrainer(args.ddpo_config, brightness, prompt_fn, pipeline, image_samples_hook=image_outputs_logger)
trainer.train()
assert isinstance(pipeline(prompt="a cat", num_inference_steps=1, eta=1.0), DDPOPipelineOutput)
trainer.save_pretrained("tuned")
device = "xpu" if is_xpu_available() else "npu" if is_npu_available() else "cuda" if torch.cuda.is_available() else "cpu"
print(f"on {device}, final score {np.mean(rewards):.6f}", file=sys.stdout)
