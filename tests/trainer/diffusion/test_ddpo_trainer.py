"""`DDPOTrainer`: its update against a plain loop, samples, rewards, checkpoints, and what is refused."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline

from tests import tiny_diffusion
from tests.hub_tools import Hub
from tests.tiny_diffusion import trainer
from trl_step import DDPOConfig, DDPOTrainer
from trl_step.algorithms.prompt_stats import batch_advantages
from trl_step.algorithms.stats import DDPO_STATS
from trl_step.trainer.ddpo_trainer import MODEL_CARD_TEMPLATE
from trl_step.trainer.diffusion.samples import DenoisingSamples, as_drawn, joined, shuffled

pytestmark = pytest.mark.filterwarnings("ignore:without log_with")
STEADY = {"train_adam_epsilon": 1e-2}
"""Adam does not turn rounding of tiny gradients into whole steps."""


def weights(ours: DDPOTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in ours.trainable_layers]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def logged(ours: DDPOTrainer) -> list[tuple[int, dict[str, Any]]]:
    """Fills with (step, values) as the trainer logs."""
    found: list[tuple[int, dict[str, Any]]] = []
    ours._trackers.log = lambda values, step: found.append((step, values))  # type: ignore[method-assign]
    return found


# --- updates -------------------------------------------------------------------------------------------------


def plain_log_probs(ours: DDPOTrainer, samples: DenoisingSamples, row: int, step: int) -> torch.Tensor:
    """The log-prob of one denoising step of one sample, by torch's own normal distribution."""
    config, schedule = ours.config, ours.sd_pipeline.scheduler
    before, after = samples.latents[row, step], samples.next_latents[row, step]
    time = samples.timesteps[row, step]
    unet, embed = ours.sd_pipeline.unet, samples.prompt_embeds[row : row + 1]
    noise = unet(before[None], time, embed).sample[0]
    if config.train_cfg:
        without = unet(before[None], time, ours.neg_prompt_embed).sample[0]
        noise = without + config.sample_guidance_scale * (noise - without)
    alpha = schedule.alphas_cumprod[time]
    there = schedule.alphas_cumprod[max(int(time) - 1000 // config.sample_num_steps, 0)]
    deviation = config.sample_eta * ((1 - there) / (1 - alpha) * (1 - alpha / there)).sqrt()
    clean = (before - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    mean = there.sqrt() * clean + (1 - there - deviation**2).sqrt() * noise
    return torch.distributions.Normal(mean, deviation).log_prob(after).mean()


def plain_epoch(ours: DDPOTrainer, samples: DenoisingSamples, advantages: torch.Tensor) -> None:
    """One pass over the samples in a plain loop, one sample and one step at a time."""
    config = ours.config
    optimizer = torch.optim.AdamW(
        ours.trainable_layers, lr=config.train_learning_rate, weight_decay=config.train_adam_weight_decay,
        eps=config.train_adam_epsilon,
    )  # fmt: skip
    order, steps = shuffled(as_drawn(samples))
    size = config.train_batch_size * config.train_gradient_accumulation_steps
    for start in range(0, len(order), size):
        losses = []
        for place in range(start, min(start + size, len(order))):
            row = int(order[place])
            advantage = float(advantages[row].clamp(-config.train_adv_clip_max, config.train_adv_clip_max))
            for step in steps[place, : config.trained_steps].tolist():
                ratio = (plain_log_probs(ours, samples, row, step) - samples.log_probs[row, step]).exp()
                near = ratio.clamp(1 - config.train_clip_range, 1 + config.train_clip_range)
                losses.append(torch.maximum(-advantage * ratio, -advantage * near))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(ours.trainable_layers, config.train_max_grad_norm)
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train_cfg": False, "sample_guidance_scale": 1.0, "sample_eta": 0.6},
        {"train_batch_size": 3, "train_timestep_fraction": 0.7, "train_adv_clip_max": 0.5},
        {"train_batch_size": 3, "train_gradient_accumulation_steps": 2, "train_clip_range": 0.01},
        {"use_lora": False, "train_max_grad_norm": 0.01},
    ],
    ids=["plain", "without-guidance", "smaller-last-batch", "accumulation", "full"],
)
def test_an_epoch_is_that_of_a_plain_loop(options: dict[str, Any], tmp_path: Path) -> None:
    """The samples do not divide into batches of three: the last batch is smaller, and counts by its samples."""
    ours, plain = (trainer(tmp_path / name, **STEADY, **options) for name in ("ours", "plain"))
    torch.manual_seed(1)
    samples = joined(ours._generate_samples(2, 4)[0])
    plain.sd_pipeline.scheduler.set_timesteps(3)
    advantages = torch.linspace(-2, 2, 8)
    start = weights(ours)
    for which in (ours, plain):
        torch.manual_seed(2)
        which._updater.reset()
        if which is ours:
            list(ours._train_epoch(samples, advantages, shuffled(as_drawn(samples))))
        else:
            plain_epoch(plain, samples, advantages)
    for before, one, other in zip(start, weights(ours), weights(plain), strict=True):
        # the moves, near 1e-2, are compared: Adam magnifies the rounding of small gradients
        torch.testing.assert_close(one - before, other - before, rtol=1e-3, atol=5e-6)
    assert not same(start, weights(ours))


def test_the_first_ratios_of_an_epoch_are_1(tmp_path: Path) -> None:
    """Dropout is off, and training asks the network as sampling did."""
    ours = trainer(tmp_path, train_batch_size=4)
    for module in ours.sd_pipeline.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    found = logged(ours)
    ours.train(1)
    first = next(values for _, values in found if "loss" in values)
    assert first["approx_kl"] == 0
    assert first["clipfrac"] == 0


def test_a_scale_below_1_samples_and_trains_without_guidance(tmp_path: Path) -> None:
    ours = trainer(tmp_path, sample_guidance_scale=0.5, train_batch_size=4)
    found = logged(ours)
    ours.train(1)
    assert next(values for _, values in found if "loss" in values)["approx_kl"] == 0


def test_an_epoch_makes_the_steps_of_good_samples_likelier(tmp_path: Path) -> None:
    ours = trainer(tmp_path, train_learning_rate=1e-3, train_batch_size=8, use_lora=False)
    torch.manual_seed(1)
    samples, advantages = joined(ours._generate_samples(2, 4)[0]), torch.linspace(-2, 2, 8)
    list(ours._train_epoch(samples, advantages, as_drawn(samples)))
    with torch.no_grad():
        now = torch.stack([
            torch.stack([plain_log_probs(ours, samples, row, step) for step in range(3)]) for row in range(8)
        ])  # fmt: skip
    gained = (now - samples.log_probs).mean(dim=1)
    assert (gained * advantages).mean() > 0
    assert gained[-1] > gained[0]


def test_steps_are_counted_and_logged(tmp_path: Path) -> None:
    ours = trainer(tmp_path, train_num_inner_epochs=2)
    found = logged(ours)
    assert ours.step(0, 0) == 8
    assert [step for step, _ in found] == [0, *range(8)]
    assert {key for _, values in found for key in values} == {stat.key for stat in DDPO_STATS}
    assert [values["inner_epoch"] for _, values in found if "inner_epoch" in values] == [0] * 4 + [1] * 4
    assert ours.steps_done == 1
    assert ours.current_step == 8


def test_loss_by_hand() -> None:
    loss = DDPOTrainer.loss(None, torch.tensor([1.0, -2.0, 3.0]), 0.1, torch.tensor([1.5, 1.5, 0.5]))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx((-1.1 + 3.0 - 1.5) / 3)


# --- rewards -------------------------------------------------------------------------------------------------


def failing(images: Any, prompts: Any, metadata: Any) -> Any:
    raise KeyError("no such judge")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda images, prompts, _: (images.mean(dim=(1, 2, 3))[:3], {}),
         r"returned 3 rewards for 4 images; the prompts are 'a dog', 'a fox', 'a cat', 'a dog'"),
        (lambda images, prompts, _: ([1.0, float("nan"), 2.0, float("inf")], {}),
         r"returned NaN or infinity for the prompts 'a fox', 'a dog'"),
        (failing, r"failed for the prompts 'a dog', .*: KeyError: 'no such judge' \(.*_trainer.py:\d+ in failing"),
        (lambda images, prompts, _: images.mean(dim=(1, 2, 3)), r"must return rewards and metadata.*returned a Tensor"),
        (lambda images, prompts, _: (["good"] * 4, {}), r"the rewards of the prompts 'a dog', .* are no numbers"),
    ],
    ids=["too-few", "not-finite", "raises", "no-pair", "no-numbers"],
)  # fmt: skip
def test_what_is_no_reward_is_refused_with_its_prompts(reward: Any, said: str, is_async: bool, tmp_path: Path) -> None:
    ours = trainer(tmp_path, reward=reward, async_reward_computation=is_async)
    before = weights(ours)
    with pytest.raises(ValueError, match=said):
        ours.train(1)
    assert same(weights(ours), before)
    assert ours.steps_done == 0


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda numbers: torch.tensor(numbers)[:, None]])
def test_rewards_of_any_kind(kind: Any, tmp_path: Path) -> None:
    ours = trainer(tmp_path, reward=lambda images, prompts, metadata: (kind([1, 2, 3, 4]), "of the batch"))
    rewards, metadata = ours.compute_rewards([[torch.zeros(4), ("a",) * 4, ({},) * 4]] * 2)
    assert torch.cat(rewards).tolist() == [1, 2, 3, 4] * 2
    assert metadata == ("of the batch",) * 2


def test_rewards_in_threads_are_the_same_in_the_same_order(tmp_path: Path) -> None:
    def reward(images: torch.Tensor, prompts: Any, metadata: Any) -> tuple[list[float], int]:
        return [float(entry["call"]) for entry in metadata], metadata[0]["call"]

    batches = [[None, ("a",) * 2, ({"call": 2 * i}, {"call": 2 * i + 1})] for i in range(6)]
    ours = trainer(tmp_path, reward=reward, max_workers=3)
    one, other = ours.compute_rewards(batches), ours.compute_rewards(batches, is_async=True)
    assert torch.cat(one[0]).tolist() == torch.cat(other[0]).tolist() == list(range(12))
    assert one[1] == other[1] == (0, 2, 4, 6, 8, 10)


def test_advantages_are_those_of_the_batch_or_of_each_prompt(tmp_path: Path) -> None:
    table = [3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 7.0, 8.0]

    def reward(images: Any, prompts: Any, metadata: Any) -> tuple[list[float], dict]:
        return [table[(entry["call"] - 1) % 8] for entry in metadata], {}

    plain, tracked = (
        trainer(tmp_path, reward=reward, per_prompt_stat_tracking=tracking, per_prompt_stat_tracking_min_count=2)
        for tracking in (False, True)
    )
    found = [ours._judged(ours._generate_samples(2, 4)[1], 0)[1] for ours in (plain, tracked)]
    torch.testing.assert_close(found[0], torch.as_tensor(batch_advantages(table), dtype=torch.float32))
    values = np.array(table)
    of_prompt = [np.array([call % 3 for call in range(1, 9)]) == prompt for prompt in range(3)]
    expected = np.empty(8)
    for here in of_prompt:
        expected[here] = (values[here] - values[here].mean()) / (values[here].std() + 1e-6)
    torch.testing.assert_close(found[1], torch.as_tensor(expected, dtype=torch.float32))


def test_long_prompts_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """The tokenizer cuts both to the same eight tokens."""
    ours = trainer(tmp_path, per_prompt_stat_tracking=True)
    names = iter([f"abcdefghijkl {end}" for end in "xyxyxyxy"])
    ours.prompt_fn = lambda: (next(names), {})
    ours.step(0, 0)
    assert ours.stat_tracker is not None
    assert sorted(ours.stat_tracker.stats) == ["abcdefghijkl x", "abcdefghijkl y"]


def test_the_hook_gets_images_rewards_and_a_tracker_or_none(tmp_path: Path) -> None:
    calls: list[Any] = []
    ours = trainer(tmp_path, hook=lambda *given: calls.append(given))
    ours.step(0, 17)
    (batches, step, tracker), = calls  # fmt: skip
    assert (len(batches), step, tracker) == (2, 17, None)
    images, prompts, prompt_metadata, rewards, reward_metadata = batches[1]
    assert images.shape == (4, 3, 8, 8)
    assert prompts == ("a cat", "a dog", "a fox", "a cat")[2:] + ("a dog", "a fox") or len(prompts) == 4
    assert [entry["call"] for entry in prompt_metadata] == [5, 6, 7, 8]
    assert rewards.tolist() == pytest.approx(images.mean(dim=(1, 2, 3)).tolist())
    assert reward_metadata == {}


def test_callbacks_are_called_after_every_step(tmp_path: Path) -> None:
    ours, reports = trainer(tmp_path), []
    ours.on_step(reports.append)
    ours.train(2)
    assert [report.step for report in reports] == [1, 2]
    assert reports[0].scores.shape == (8,)
    assert {"reward_mean", "loss", "approx_kl", "clipfrac"} <= set(reports[0].stats)


# --- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"per_prompt_stat_tracking": True}, {"use_lora": False}], ids=["lora", "full"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", **options)
    expected = logged(whole)
    whole.train(3)
    first = trainer(tmp_path / "cut", **options)
    first.train(2)
    rest = trainer(tmp_path / "cut", **options, resume_from=str(tmp_path / "cut"))
    rest.prompt_fn.calls = first.prompt_fn.calls  # type: ignore[attr-defined]
    assert rest.first_epoch == 2
    found = logged(rest)
    rest.train(3)
    assert same(weights(rest), weights(whole))
    here, there = found, expected[-len(found) :]
    assert [step for step, _ in here] == [step for step, _ in there]
    for (_, one), (_, other) in zip(here, there, strict=True):
        assert {key: np.asarray(value).tolist() for key, value in one.items()} == {
            key: np.asarray(value).tolist() for key, value in other.items()
        }


def test_checkpoints_come_every_so_many_epochs_and_the_newest_are_kept(tmp_path: Path) -> None:
    trainer(tmp_path, save_freq=2, num_checkpoint_limit=2).train(7)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000006"]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    with_adapter = next(folder.rglob("policy.safetensors")).stat().st_size
    assert with_adapter < 20_000, "frozen weights are in no checkpoint"


def test_one_checkpoint_or_the_newest_of_a_folder_is_resumed(tmp_path: Path) -> None:
    trainer(tmp_path).train(2)
    for named, epochs in (("checkpoints/step-00000001", 1), ("checkpoints", 2), (".", 2)):
        assert trainer(tmp_path / "new", resume_from=str(tmp_path / named)).first_epoch == epochs
    (tmp_path / "old" / "checkpoint_3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"resume_from=.*no complete checkpoint.*those of TRL"):
        trainer(tmp_path / "new", resume_from=str(tmp_path / "old"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).train(1)
    with pytest.raises(ValueError, match=r"train_clip_range: 0.0001 in the state, 0.2 here"):
        trainer(tmp_path / "new", train_clip_range=0.2, resume_from=str(tmp_path))
    with pytest.raises(ValueError, match="frozen weights"):
        trainer(tmp_path / "new", seed=1, resume_from=str(tmp_path))


# --- saving --------------------------------------------------------------------------------------------------


def test_what_is_saved_loads_and_its_card_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    ours = trainer(tmp_path)
    ours.save_pretrained(str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: diffusers" in card
    assert 'pipeline.load_lora_weights("out"' in card
    assert "| sample_num_steps | 3 |" in card
    StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert ours.push_to_hub("mine") == "https://hub/commit/1"
    assert {"README.md", "unet", "pytorch_lora_weights.safetensors"} <= hub.uploads[0]
    assert "# A name" in MODEL_CARD_TEMPLATE.format(model_name="A name", model_id="me/mine")
    trainer(tmp_path, use_lora=False).create_model_card(str(tmp_path / "full"), "Whole")
    assert "load_lora_weights" not in (tmp_path / "full" / "README.md").read_text()


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sample_batch_size": 0}, "sample_batch_size=0 must be a whole number, 1 or more"),
        ({"train_batch_size": 1.5}, "train_batch_size=1.5 must be a whole number"),
        ({"sample_eta": 0.0}, "sample_eta=0.0 must be above 0 and at most 1"),
        ({"train_timestep_fraction": 1.2}, "train_timestep_fraction=1.2 must be above 0"),
        ({"train_timestep_fraction": 0.1}, "is less than one step"),
        ({"train_clip_range": 0.0}, "train_clip_range=0.0 must be above 0"),
        ({"mixed_precision": "half"}, "mixed_precision='half' must be one of no, fp16, bf16"),
        ({"negative_prompts": ["ugly"]}, "must be one text"),
        ({"per_prompt_stat_tracking": True, "per_prompt_stat_tracking_min_count": 17}, "no prompt would ever have"),
    ],
)
def test_a_setting_out_of_range_is_named(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        tiny_diffusion.config(tmp_path, **options)


def test_float16_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DDPOConfig().mixed_precision == "fp16"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match='mixed_precision="fp16" needs a GPU'):
        trainer(tmp_path, mixed_precision="fp16")


def test_guidance_in_sampling_alone_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ratios do not start at 1"):
        trainer(tmp_path, train_cfg=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "train_cfg=False")
        trainer(tmp_path, train_cfg=False, sample_guidance_scale=1.0)


def test_a_pipeline_with_nothing_to_train_is_refused(tmp_path: Path) -> None:
    policy = tiny_diffusion.policy(use_lora=False)
    policy.unet.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        DDPOTrainer(tiny_diffusion.config(tmp_path), tiny_diffusion.brightness, tiny_diffusion.Prompts(), policy)


def test_a_network_that_is_no_number_stops_before_its_weights_move(tmp_path: Path) -> None:
    ours = trainer(tmp_path)
    before = weights(ours)
    ours.calculate_loss = lambda *given, **named: (before[0].sum() * float("nan"), *torch.zeros(2))  # type: ignore
    with pytest.raises(ValueError, match=r"the loss of a mini-batch is nan.*mixed_precision"):
        ours.train(1)
    assert same(weights(ours), before)


def test_bfloat16_keeps_what_trains_in_float32(tmp_path: Path) -> None:
    for use_lora in (True, False):
        ours = trainer(tmp_path, use_lora=use_lora, mixed_precision="bf16", num_epochs=1)
        before = copy.deepcopy(weights(ours))
        assert {p.dtype for p in ours.trainable_layers} == {torch.float32}
        assert {p.dtype for p in ours.sd_pipeline.vae.parameters()} == {torch.bfloat16}
        frozen = {p.dtype for p in ours.sd_pipeline.unet.parameters() if not p.requires_grad}
        assert frozen == ({torch.bfloat16} if use_lora else set())
        found = logged(ours)
        ours.train()
        assert next(values for _, values in found if "loss" in values)["approx_kl"] == 0
        assert not same(weights(ours), before)


def test_precision_may_be_left_to_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert tiny_diffusion.config(tmp_path, mixed_precision=None).mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert tiny_diffusion.config(tmp_path, mixed_precision=None).mixed_precision == "bf16"


def test_samples_are_a_dictionary_too(tmp_path: Path) -> None:
    """In release 0.7 they are one, and a subclass may make them so."""

    class Own(DDPOTrainer):
        def _generate_samples(self, *args: Any) -> Any:
            samples, images = super()._generate_samples(*args)
            names = (*samples[0]._fields, "negative_prompt_embeds")
            return [{name: getattr(part, name, None) for name in names} for part in samples], images

    ours, own = trainer(tmp_path), trainer(tmp_path, cls=Own)
    sample = trainer(tmp_path)._generate_samples(1, 2)[0][0]
    assert torch.equal(sample["latents"], sample.latents)
    assert torch.equal(sample[0], sample.prompt_ids)
    for one in (ours, own):
        torch.manual_seed(1)
        one.train(1)
    assert same(weights(own), weights(ours))


class OwnConstructor(DDPOTrainer):
    """As a subclass of release 0.7 may be: a constructor and an update of its own, and accelerate's checkpoints."""

    def __init__(self, config: DDPOConfig, reward: Any, prompts: Any, whole: Any, hook: Any = None) -> None:
        self.config, self.reward_fn, self.prompt_fn, self.sd_pipeline = config, reward, prompts, whole
        self.image_samples_callback, self.stat_tracker, self.first_epoch = hook, None, 0
        self.accelerator = Accelerator(cpu=True)
        self.checked = self._config_check()
        self.accelerator.register_save_state_pre_hook(self._save_model_hook)
        self.accelerator.register_load_state_pre_hook(self._load_model_hook)
        layers = whole.get_trainable_layers()
        unet, self.optimizer = self.accelerator.prepare(layers, self._setup_optimizer(layers.parameters()))
        self.trainable_layers = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        self.autocast = whole.autocast or self.accelerator.autocast
        self.neg_prompt_embed = self._embedded(self._token_ids([""]))
        self._unet = whole.unet

    def step(self, epoch: int, global_step: int) -> int:
        batches, images = self._generate_samples(1, self.config.sample_batch_size)
        rewards, _ = self.compute_rewards(images)
        samples, advantages = batches[0], rewards[0] - rewards[0].mean()
        loss, *_ = self.calculate_loss(
            samples.latents[:, 0], samples.timesteps[:, 0], samples.next_latents[:, 0], samples.log_probs[:, 0],
            advantages, torch.cat([self.neg_prompt_embed.expand_as(samples.prompt_embeds), samples.prompt_embeds]),
        )  # fmt: skip
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return global_step + 1


@pytest.mark.parametrize("use_lora", [True, False])
def test_a_constructor_of_its_own_trains_and_its_checkpoints_load(use_lora: bool, tmp_path: Path) -> None:
    ours = trainer(tmp_path, use_lora, cls=OwnConstructor, train_batch_size=4)
    assert ours.checked == (True, "")
    start = weights(ours)
    ours.train(2)
    trained = weights(ours)
    assert not same(start, trained)
    ours.accelerator.save_state(str(tmp_path / "state"))
    ours.train(1)
    assert not same(trained, weights(ours))
    ours.accelerator.load_state(str(tmp_path / "state"))
    assert same(trained, weights(ours))


def test_sizes_that_do_not_go_together_are_named_to_it(tmp_path: Path) -> None:
    one = trainer(tmp_path, cls=OwnConstructor, train_batch_size=3)
    assert one.checked == (False, "sample_batch_size=4 is not a multiple of train_batch_size=3")
    other = trainer(tmp_path, cls=OwnConstructor, train_batch_size=2, train_gradient_accumulation_steps=3)
    assert other.checked == (False, "the 8 samples of an epoch are not a multiple of the 6 of an update")
