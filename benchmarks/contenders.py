"""The libraries behind one interface: a step on given samples, and the seconds that it took.

Runs in the virtual environment of the library, so nothing else of the benchmarks is imported but `cases`. In every
library a step is: the log-probs of the batch under the policy and under the reference, advantages, then 4 epochs of
forward, backward and optimizer step for each mini-batch, and the statistics that the library makes of them.
"""

from __future__ import annotations

import tempfile
import time

import torch
from cases import PPO_EPOCHS, Case

LEARNING_RATE = 1e-4
BETA = 0.04  # of the KL in the loss, where advantages are taken within groups


def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(8)}, unk_token="w3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w3")


def fill(module) -> None:
    """Draw weights by name, not in the order in which a release builds its modules."""
    named = module if isinstance(module, list) else sorted(module.named_parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in named:
            if name.endswith("bias"):
                parameter.zero_()
            elif "ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def fill_adapters(model, adapter: str = "") -> None:
    fill([(n, p) for n, p in sorted(model.named_parameters()) if "lora_" in n and adapter in n])


def plain_model(case: Case):
    """The language model, with the same weights for every library."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=case.vocabulary, n_embd=case.width, n_layer=case.layers, n_head=max(case.width // 64, 1),
        n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    fill(model)
    return model


def adapters():
    from peft import LoraConfig

    return LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )


def adapted_model(case: Case):
    """The language model, with fresh adapters if the case has them."""
    model = plain_model(case)
    if case.lora:
        from peft import get_peft_model

        model = get_peft_model(model, adapters())
    return model


def make_model(library, case: Case):
    """The language model with a value head."""
    options = {"peft_config": adapters()} if case.lora else {}
    model = library.AutoModelForCausalLMWithValueHead.from_pretrained(plain_model(case), **options)
    model.v_head.dropout = torch.nn.Identity()
    fill(model.v_head)
    if case.lora:
        fill_adapters(model.pretrained_model)
    return model


class PPO:
    """`PPOTrainer` of trl_step, or of TRL up to 0.11."""

    def __init__(self, library, case: Case, settings: dict, accelerator: dict) -> None:
        options = {"batch_size": case.samples, "mini_batch_size": case.mini_batch, "learning_rate": LEARNING_RATE}
        if case.grouped:
            options.update(
                advantage_estimator="grpo", loss_normalization="samples", kl_in="loss", kl_penalty="k3",
                init_kl_coef=BETA, adap_kl_ctrl=False, policy_loss="gspo" if case.algorithm == "gspo" else "clip",
            )  # fmt: skip
        config = library.PPOConfig(accelerator_kwargs={"cpu": True, **accelerator}, **{**options, **settings})
        trainer = with_own_loss(library) if case.algorithm == "own-loss" else library.PPOTrainer
        model = adapted_model(case) if case.grouped else make_model(library, case)
        self.trainer = trainer(config, model, None, tokenizer(), num_shared_layers=case.shared_layers or None)
        if case.lora and case.grouped:  # not before: a trained adapter would be part of the reference
            fill_adapters(self.trainer.model)

    @property
    def model(self):
        return self.trainer.model

    def step(self, queries, responses, scores) -> dict:
        return self.trainer.step(queries, responses, scores)

    def timed(self, *samples) -> tuple[float, float]:
        """Wall and CPU seconds of a step."""
        return timed(self.step, *samples)


def timed(function, *arguments) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def with_own_loss(library):
    """A trainer whose `policy_losses` is the clipped loss, as a user would write it."""

    class OwnLoss(library.PPOTrainer):
        def policy_losses(self, logprobs, old_logprobs, advantages, mask):
            ratio = torch.exp(logprobs - old_logprobs)
            low, high = 1 - self.config.cliprange, 1 + self.config.cliprange
            return torch.max(-advantages * ratio, -advantages * ratio.clamp(low, high))

    return OwnLoss


class TrlGRPO:
    """`GRPOTrainer` of TRL from 1.0 on: `train()` over one batch of given completions.

    Timed is what lies between the start of the first update and the end of the last: `rollout_func` hands over the
    completions, then come log-probs of policy and reference, advantages, and all updates. Making the data loader and
    everything else that `train()` does once is not timed. On by default and off here: checkpointing of activations,
    bf16, and the ratio as a factor of the KL.
    """

    def __init__(self, library, case: Case) -> None:
        from datasets import Dataset
        from transformers import TrainerCallback
        from transformers.trainer_utils import set_seed

        contender = self
        self.updates = PPO_EPOCHS * case.samples // case.mini_batch
        self.samples: tuple = ()
        self.seconds = (0.0, 0.0)

        class Clock(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 0:
                    contender.started = time.perf_counter(), time.process_time()

            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == contender.updates:
                    wall, cpu = contender.started
                    contender.seconds = time.perf_counter() - wall, time.process_time() - cpu

        def rollout(prompts, trainer):
            queries, responses, scores = contender.samples
            return {
                "prompt_ids": [query.tolist() for query in queries],
                "completion_ids": [response.tolist() for response in responses],
                "logprobs": None,
                "score": [float(score) for score in scores],
            }

        self.folder = tempfile.TemporaryDirectory()  # the reference is loaded from a checkpoint, never copied
        folder = self.folder.name
        plain_model(case).save_pretrained(folder)
        set_seed(0)
        config = library.GRPOConfig(
            output_dir=folder, per_device_train_batch_size=case.mini_batch, num_generations=case.group,
            steps_per_generation=case.samples // case.mini_batch, num_iterations=PPO_EPOCHS, max_steps=self.updates,
            beta=BETA, use_bias_correction_kl=False, epsilon=0.2, loss_type="grpo",
            max_completion_length=case.response[1],
            importance_sampling_level="sequence" if case.algorithm == "gspo" else "token",
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", max_grad_norm=0.0, bf16=False,
            gradient_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False, model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        self.trainer = library.GRPOTrainer(
            folder,
            reward_funcs=lambda score, **_: score,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["w4"] * case.samples}),
            processing_class=tokenizer(),
            peft_config=adapters() if case.lora else None,
            rollout_func=rollout,
            callbacks=[Clock()],
        )
        if case.lora:
            fill_adapters(self.trainer.model)

    @property
    def model(self):
        return self.trainer.model

    def step(self, *samples) -> dict:
        self.samples = samples
        self.trainer.train()
        return {}

    def timed(self, *samples) -> tuple[float, float]:
        self.step(*samples)
        return self.seconds


class AgileGRPO:
    """`GRPO.learn` of AgileRL, which trains adapters only.

    It is timed as a whole: log-probs of policy and reference, advantages, and all updates. Its masks of off-policy
    tokens, its weighted and bounded KL, the checkpointing of activations and the kernels of Liger are off, so that
    it computes the same loss as the others.
    """

    def __init__(self, case: Case) -> None:
        from agilerl.algorithms.grpo import GRPO

        if not case.lora:
            raise SystemExit("AgileRL trains adapters only")
        words = tokenizer()
        self.trainer = GRPO(
            pad_token_id=words.pad_token_id, pad_token=words.pad_token, actor_network=plain_model(case),
            batch_size=case.samples // case.group, group_size=case.group, micro_batch_size_per_gpu=case.mini_batch,
            update_epochs=PPO_EPOCHS, beta=BETA, lr=LEARNING_RATE, clip_coef=0.2, max_grad_norm=1e9, temperature=1.0,
            max_model_len=512, max_output_tokens=case.response[1], lora_config=adapters(), device="cpu",
            gradient_checkpointing=False, use_liger_loss=False, adv_norm="mean_std", loss_norm="micro_batch",
            loss_type=case.algorithm, use_separate_reference_adapter=False, off_policy_token_mask_bounds=None,
            off_policy_sequence_mask_threshold=None, use_bias_correction_kl=False, kl_clamp=None, seed=0,
        )  # fmt: skip
        fill_adapters(self.trainer.actor, ".actor.")

    @property
    def model(self):
        return self.trainer.actor

    def step(self, queries, responses, scores) -> dict:
        rows, masks = [], []
        for query, response in zip(queries, responses):  # noqa: B905
            rows.append(torch.cat([query, response]).unsqueeze(0))
            mask = torch.zeros(1, len(query) + len(response) - 1, dtype=torch.bool)
            mask[0, len(query) - 1 :] = True
            masks.append(mask)
        return self.trainer.learn((rows, masks, torch.stack(scores)))

    def timed(self, *samples) -> tuple[float, float]:
        return timed(self.step, *samples)


def make(library, case: Case, settings: dict, accelerator: dict):
    """The contender that runs a case with a library."""
    if library.__name__ == "agilerl":
        return AgileGRPO(case)
    if library.__name__ == "trl" and case.grouped:
        return TrlGRPO(library, case)
    return PPO(library, case, settings, accelerator)
