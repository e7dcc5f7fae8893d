"""A Stable Diffusion pipeline as a policy: steps, what is sampled, adapters, what is saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

from tests import tiny_diffusion
from trl_step import DDPOStableDiffusionPipeline, DefaultDDPOStableDiffusionPipeline
from trl_step.models import modeling_sd_base, sd_utils
from trl_step.models.modeling_sd_base import scheduler_step


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def sampled(policy: DefaultDDPOStableDiffusionPipeline, **options: Any) -> Any:
    """Two samples of three steps, as the trainer asks for them."""
    return policy(
        prompt=["a cat", "a dog"],
        num_inference_steps=3,
        eta=1.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(5),
        **options,
    )


def drawn(policy: DefaultDDPOStableDiffusionPipeline) -> DefaultDDPOStableDiffusionPipeline:
    """With an adapter that changes what the network says."""
    policy.get_trainable_layers()
    with torch.no_grad():
        for parameter in policy.unet.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    return policy


# --- a step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("time", [667, 334, 1])
def test_the_mean_of_a_step_is_that_of_diffusers(kind: str, time: int) -> None:
    made = tiny_diffusion.scheduler(prediction_type=kind)
    made.set_timesteps(3)
    expected = made.step(latents(0), time, latents(1), eta=0.0).prev_sample
    torch.testing.assert_close(scheduler_step(made, latents(0), time, latents(1), eta=0.0).latents, expected)


def test_a_noisy_step_is_that_of_diffusers() -> None:
    made = tiny_diffusion.scheduler()
    made.set_timesteps(3)
    seeds = [torch.Generator().manual_seed(7) for _ in range(2)]
    expected = made.step(latents(0), 667, latents(1), eta=0.7, generator=seeds[0]).prev_sample
    found = scheduler_step(made, latents(0), 667, latents(1), eta=0.7, generator=seeds[1])
    torch.testing.assert_close(found.latents, expected)
    again = scheduler_step(made, latents(0), torch.tensor([667, 667]), latents(1), 0.7, prev_sample=found.latents)
    torch.testing.assert_close(again.log_probs, found.log_probs, rtol=0, atol=0)


def test_each_sample_may_have_a_time_step_of_its_own() -> None:
    made = tiny_diffusion.scheduler()
    made.set_timesteps(3)
    after = latents(1) + 0.1 * latents(2)
    both = scheduler_step(made, latents(0), torch.tensor([667, 1]), latents(1), 1.0, prev_sample=after).log_probs
    for row, time in enumerate((667, 1)):
        one = slice(row, row + 1)
        alone = scheduler_step(made, latents(0)[one], time, latents(1)[one], 1.0, prev_sample=after[one]).log_probs
        torch.testing.assert_close(both[one], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_the_log_prob_is_that_of_the_rounded_latents(dtype: torch.dtype) -> None:
    made = tiny_diffusion.scheduler()
    made.set_timesteps(3)
    inputs = made, latents(0).to(dtype), 1, latents(1).to(dtype), 1.0
    found = scheduler_step(*inputs)
    assert found.latents.dtype == dtype
    assert found.log_probs.dtype == torch.float32
    assert torch.equal(scheduler_step(*inputs, prev_sample=found.latents).log_probs, found.log_probs)


def test_a_step_that_cannot_be_made_is_refused() -> None:
    made = tiny_diffusion.scheduler()
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler_step(made, latents(0), 1, latents(1))
    made.set_timesteps(3)
    with pytest.raises(ValueError, match="give one of the two"):
        scheduler_step(made, latents(0), 1, latents(1), generator=torch.Generator(), prev_sample=latents(1))
    pixels = tiny_diffusion.scheduler(thresholding=True)
    pixels.set_timesteps(3)
    with pytest.raises(ValueError, match="thresholding=True"):
        scheduler_step(pixels, latents(0), 1, latents(1))


# --- sampling ------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_pipeline_itself_with_their_log_probs() -> None:
    policy = tiny_diffusion.policy()
    plain = copy.deepcopy(policy.sd_pipeline)
    found = sampled(policy)
    expected = plain(
        prompt=["a cat", "a dog"], num_inference_steps=3, eta=1.0, output_type="pt",
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    torch.testing.assert_close(found.images, expected.images)
    assert len(found.latents) == 4
    for step, time in enumerate(policy.scheduler.timesteps):
        made, then = found.latents[step], found.latents[step + 1]
        embeds = policy.text_encoder(policy.tokenizer(["", "", "a cat", "a dog"], return_tensors="pt",
                                                      padding="max_length").input_ids)[0]  # fmt: skip
        without, with_prompt = policy.unet(torch.cat([made] * 2), time, embeds).sample.chunk(2)
        prediction = without + 7.5 * (with_prompt - without)
        again = policy.scheduler_step(prediction, time, made, eta=1.0, prev_sample=then).log_probs
        torch.testing.assert_close(found.log_probs[step], again)
    assert "step" not in vars(policy.scheduler), "the scheduler is as it was"


# --- what trains ---------------------------------------------------------------------------------------------


def test_lora_trains_an_adapter_alone_and_full_tuning_the_network_alone() -> None:
    with_adapter, whole = tiny_diffusion.policy(), tiny_diffusion.policy(use_lora=False)
    names = [name for name, p in with_adapter.get_trainable_layers().named_parameters() if p.requires_grad]
    assert names
    assert all(".lora_" in name for name in names)
    assert all(p.requires_grad for p in whole.get_trainable_layers().parameters())
    for policy in (with_adapter, whole):
        frozen = [*policy.vae.parameters(), *policy.text_encoder.parameters()]
        assert not any(p.requires_grad for p in frozen)
    assert with_adapter.autocast is not None
    assert whole.autocast is None


def test_layers_may_be_asked_for_twice() -> None:
    policy = tiny_diffusion.policy()
    first = [p for p in policy.get_trainable_layers().parameters() if p.requires_grad]
    second = [p for p in policy.get_trainable_layers().parameters() if p.requires_grad]
    assert all(one is other for one, other in zip(first, second, strict=True))


# --- saving --------------------------------------------------------------------------------------------------


def test_a_saved_adapter_comes_back_and_is_what_trains(tmp_path: Path) -> None:
    policy = drawn(tiny_diffusion.policy())
    policy.save_pretrained(tmp_path)
    again = DefaultDDPOStableDiffusionPipeline(str(tmp_path), use_lora=False)
    assert again.use_lora, "the model has an adapter"
    trained = {name.replace("default_0", "default"): p for name, p in again.get_trainable_layers().named_parameters()
               if p.requires_grad}  # fmt: skip
    own = {name: p for name, p in policy.unet.named_parameters() if p.requires_grad}
    assert trained.keys() == own.keys()
    assert all(torch.equal(trained[name], own[name]) for name in own)
    again.sd_pipeline.set_progress_bar_config(disable=True)
    # another name of the adapter is another order of additions
    torch.testing.assert_close(sampled(again).latents[-1], sampled(policy).latents[-1])


def test_beside_the_adapter_the_untrained_network_is_saved(tmp_path: Path) -> None:
    plain, policy = tiny_diffusion.policy(), drawn(tiny_diffusion.policy())
    policy.save_pretrained(tmp_path)
    assert any(".lora_" in name for name in policy.unet.state_dict()), "the network in use is as it was"
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    saved = again.unet.state_dict()
    assert saved.keys() == plain.unet.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in plain.unet.state_dict().items())
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]


def test_a_tuned_network_comes_back(tmp_path: Path) -> None:
    policy = drawn(tiny_diffusion.policy(use_lora=False))
    policy.save_pretrained(tmp_path)
    again = DefaultDDPOStableDiffusionPipeline(str(tmp_path), use_lora=False)
    assert not again.use_lora
    for name, tensor in policy.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], tensor)


@pytest.mark.parametrize("use_lora", [True, False])
def test_checkpoint_hooks_save_and_load_what_trains(use_lora: bool, tmp_path: Path) -> None:
    policy, again = drawn(tiny_diffusion.policy(use_lora=use_lora)), tiny_diffusion.policy(use_lora=use_lora)
    again.get_trainable_layers()
    policy.save_checkpoint([policy.unet], [], tmp_path)
    again.load_checkpoint([again.unet], tmp_path)
    for name, tensor in policy.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], tensor)


# --- names and packages --------------------------------------------------------------------------------------


def test_without_diffusers_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_step.import_utils.is_diffusers_available", lambda: False)
    with pytest.raises(ImportError, match=r"DefaultDDPOStableDiffusionPipeline needs .*: pip install diffusers"):
        DefaultDDPOStableDiffusionPipeline("anything")
    with pytest.raises(ImportError, match=r"convert_state_dict needs .*: pip install diffusers"):
        _ = sd_utils.convert_state_dict


def test_legacy_names_of_the_modules() -> None:
    for name in sd_utils.__all__:
        assert hasattr(sd_utils, name)
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = sd_utils.other  # type: ignore[attr-defined]
    converted = sd_utils.convert_state_dict_to_diffusers({"to_k.lora_A.weight": torch.ones(1)})
    assert list(converted) == ["to_k.lora.down.weight"]
    assert callable(modeling_sd_base.pipeline_step)


def test_a_pipeline_of_ones_own_is_told_what_it_lacks() -> None:
    class Mine(DDPOStableDiffusionPipeline):
        pass

    for name in ("unet", "vae", "tokenizer", "scheduler", "text_encoder", "autocast"):
        with pytest.raises(NotImplementedError, match=f"Mine must implement {name}"):
            getattr(Mine(), name)
    for name in ("__call__", "scheduler_step", "set_progress_bar_config", "save_pretrained", "get_trainable_layers",
                 "save_checkpoint", "load_checkpoint"):  # fmt: skip
        with pytest.raises(NotImplementedError, match=f"Mine must implement {name}"):
            getattr(Mine(), name)()


def test_an_adapter_of_ones_own_is_what_trains() -> None:
    whole = tiny_diffusion.pipeline()
    whole.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "mine")
    policy = DefaultDDPOStableDiffusionPipeline(whole)
    names = [name for name, p in policy.get_trainable_layers().named_parameters() if p.requires_grad]
    assert names
    assert all("to_q" in name and "mine" in name for name in names)
