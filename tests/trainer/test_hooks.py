"""The methods that users override: `step` calls them with the arguments and shapes of release 0.7.11.

The shapes below were recorded once with that release, on the same GPT-2 shape and the same batch: 8 samples in
mini-batches of 4, the longest of them 11 tokens long, so T = 10, and a vocabulary of 60.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig

from tests.tiny import SEQ2SEQ, batch, config, tokenizer, trainer, weights, with_value_head
from trl_step import PPOTrainer

SCALARS = [
    "loss/policy", "loss/value", "loss/total", "policy/entropy", "policy/approxkl", "policy/policykl",
    "policy/clipfrac", "policy/advantages_mean", "returns/mean", "returns/var", "val/vpred", "val/error",
    "val/clipfrac", "val/mean", "val/var",
]  # fmt: skip
MINIBATCH_STATS = dict.fromkeys(SCALARS, ()) | {"policy/advantages": (4, 10), "policy/ratio": (4, 10)}
TRAIN_STATS = dict.fromkeys(SCALARS, (2, 1)) | {"policy/advantages": (1, 80), "policy/ratio": (1, 80)}
T, LOGITS = (4, 10), (4, 10, 60)
B = (8, 10)
ROLLOUT_INPUTS = {"input_ids": (8, 11), "attention_mask": (8, 11)}
TRAIN_INPUTS = {"input_ids": (4, 11), "attention_mask": (4, 11)}

# hook: positional arguments, keyword arguments, what comes back
RECORDED: dict[str, tuple[list[Any], dict[str, Any], Any]] = {
    "prepare_model_inputs": (["list of 8", "list of 8"], {}, ROLLOUT_INPUTS),
    "batched_forward_pass, policy": (
        ["model", "list of 8", "list of 8", ROLLOUT_INPUTS],
        {"return_logits": "bool", "response_masks": None},
        [B, None, B, B],
    ),
    "batched_forward_pass, reference": (
        ["model", "list of 8", "list of 8", ROLLOUT_INPUTS],
        {"return_logits": "bool"},
        [B, None, B, B],
    ),
    "compute_rewards": ([(8,), B, B, B], {}, [B, B, B]),
    "_kl_penalty": ([(10,), (10,)], {}, (10,)),
    "compute_advantages": ([B, B, B], {}, [B, B, B]),
    "batched_forward_pass, training": (
        ["model", "list of 4", "list of 4", TRAIN_INPUTS],
        {"return_logits": "bool"},
        [T, LOGITS, T, T],
    ),
    "train_minibatch": ([T, T, T, LOGITS, T, T, T, T], {}, MINIBATCH_STATS),
    "loss": ([T, T, LOGITS, T, T, T, T, T], {}, [(), (), MINIBATCH_STATS]),
    "_early_stop": ([()], {}, "bool"),
    "record_step_stats": (
        [],
        {
            "scores": (8,), "logprobs": B, "ref_logprobs": B, "non_score_reward": B, "train_stats": TRAIN_STATS,
            "kl_coef": "float", "masks": B, "queries": "list of 8", "responses": "list of 8", "kls": B,
        },
        dict,
    ),
}  # fmt: skip
RECORDED_FULL = {
    "batched_forward_pass, policy": (*RECORDED["batched_forward_pass, policy"][:2], [B, (8, 10, 60), B, B]),
    "batched_forward_pass, reference": (*RECORDED["batched_forward_pass, reference"][:2], [B, (8, 10, 60), B, B]),
    "compute_rewards": ([(8,), (8, 10, 60), (8, 10, 60), B], {}, [B, B, B]),
    "_kl_penalty": ([(10, 60), (10, 60)], {}, (10,)),
}
HOOKS = sorted({name.split(",")[0] for name in RECORDED})


def shape(value: Any) -> Any:
    if isinstance(value, torch.nn.Module):
        return "model"
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [shape(item) for item in value]
    if isinstance(value, list):
        return f"list of {len(value)}"
    return None if value is None else type(value).__name__


def recording(names: list[str]) -> tuple[type, dict[str, Any]]:
    """A subclass that overrides the hooks `names` with a call to super, and what the first calls looked like."""
    calls: dict[str, Any] = {}

    def override(name: str) -> Any:
        def hook(self: PPOTrainer, *args: Any, **kwargs: Any) -> Any:
            result = getattr(super(cls, self), name)(*args, **kwargs)
            key = name
            if name == "batched_forward_pass":
                who = "training" if torch.is_grad_enabled() else "policy" if args[0] is self.model else "reference"
                key = f"{name}, {who}"
            calls.setdefault(key, ([shape(x) for x in args], {k: shape(x) for k, x in kwargs.items()}, shape(result)))
            return result

        return hook

    cls = type("Recording", (PPOTrainer,), {name: override(name) for name in names})
    return cls, calls


def check(calls: dict[str, Any], recorded: dict[str, Any], name: str) -> None:
    """Everything that was recorded of the hook `name` is there again; what is new may stand beside it as a keyword."""
    for key, (args, kwargs, result) in recorded.items():
        if key.split(",")[0] != name:
            continue
        seen_args, seen_kwargs, seen_result = calls[key]
        assert seen_args == args, key
        assert holds(seen_kwargs, {k: v for k, v in kwargs.items() if v is not None}), (key, seen_kwargs)
        assert result is dict or holds(seen_result, result), (key, seen_result)


def holds(seen: Any, recorded: Any) -> bool:
    if isinstance(recorded, dict):
        return all(key in seen and holds(seen[key], value) for key, value in recorded.items())
    if isinstance(recorded, list):
        return len(seen) == len(recorded) and all(map(holds, seen, recorded))
    return seen == recorded


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_is_overridden_alone_gets_what_it_got(name: str) -> None:
    cls, calls = recording([name])
    trainer("gpt2", cls=cls, ppo_epochs=1, early_stopping=True).step(*batch())
    expected = dict(RECORDED)
    if name == "record_step_stats":  # on the fast path each mini-batch has its own width
        args, kwargs, result = expected[name]
        expected[name] = (args, kwargs | {"train_stats": dict.fromkeys(SCALARS, (2, 1))}, result)
    check(calls, expected, name)


@pytest.mark.parametrize("kl_penalty", ["kl", "full"])
def test_all_hooks_together_get_what_they_got(kl_penalty: str) -> None:
    cls, calls = recording(HOOKS)
    trainer("gpt2", cls=cls, ppo_epochs=1, early_stopping=True, kl_penalty=kl_penalty).step(*batch())
    for name in HOOKS:
        check(calls, RECORDED | (RECORDED_FULL if kl_penalty == "full" else {}), name)


@pytest.mark.parametrize("name", ["compute_rewards", "_kl_penalty", "batched_forward_pass"])
def test_the_distributions_are_built_for_a_hook_that_takes_them(name: str) -> None:
    cls, calls = recording([name])
    trainer("gpt2", cls=cls, ppo_epochs=1, kl_penalty="full").step(*batch())
    check(calls, RECORDED | RECORDED_FULL, name)


def test_the_statistics_of_a_step_have_their_recorded_names() -> None:
    cls, _ = recording(["loss"])
    stats = trainer("gpt2", cls=cls).step(*batch())
    names = {f"ppo/{name}" for name in TRAIN_STATS} | {
        "objective/kl", "objective/kl_dist", "objective/logprobs", "objective/ref_logprobs", "objective/kl_coef",
        "objective/entropy", "ppo/mean_non_score_reward", "ppo/mean_scores", "ppo/std_scores",
        "tokens/queries_len_mean", "tokens/queries_len_std", "tokens/queries_dist", "tokens/responses_len_mean",
        "tokens/responses_len_std", "tokens/responses_dist", "ppo/val/var_explained", "ppo/learning_rate",
        "time/ppo/forward_pass", "time/ppo/compute_rewards", "time/ppo/compute_advantages", "time/ppo/optimize_step",
        "time/ppo/calc_stats", "time/ppo/total",
    }  # fmt: skip
    assert names <= set(stats)


# --- overriding has an effect ----------------------------------------------------------------------------------


def test_what_a_hook_returns_is_what_is_used() -> None:
    class Mine(PPOTrainer):
        def compute_rewards(self, *args: Any) -> Any:
            rewards, non_score, kls = super().compute_rewards(*args)
            return rewards * 0, non_score * 0 + 7.0, kls

        def compute_advantages(self, values: Any, rewards: Any, mask: Any) -> Any:
            assert not rewards.any()
            values, advantages, returns = super().compute_advantages(values, rewards, mask)
            return values, advantages, returns * 0 + 3.0

        def loss(self, *args: Any) -> Any:
            policy, value, stats = super().loss(*args)
            return policy, value, {**stats, "loss/mine": torch.tensor(5.0)}

        def record_step_stats(self, kl_coef: float, **data: Any) -> Any:
            return {**super().record_step_stats(kl_coef, **data), "mine/kl_coef": kl_coef * 10}

    stats = trainer("gpt2", cls=Mine).step(*batch())
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(7.0)
    assert stats["ppo/returns/mean"] == pytest.approx(3.0)
    assert stats["ppo/loss/mine"] == 5.0
    assert stats["mine/kl_coef"] == pytest.approx(2.0)


def test_an_own_penalty_and_an_own_early_stop() -> None:
    class Mine(PPOTrainer):
        epochs = 0

        def _kl_penalty(self, logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(logprob)

        def _early_stop(self, policykl: torch.Tensor) -> bool:
            self.epochs += 1
            return self.epochs == 2

    ours = trainer("gpt2", cls=Mine, early_stopping=True, adap_kl_ctrl=False)
    queries, responses, scores = batch()
    stats = ours.step(queries, responses, scores)
    assert ours.epochs == 2
    assert stats["objective/kl"] == pytest.approx(sum(map(len, responses)) / 8)
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.2)


def test_a_method_may_be_replaced_on_the_object() -> None:
    ours = trainer("gpt2")
    plain, calls = ours.loss, []
    ours.loss = lambda *args: (calls.append([shape(x) for x in args]), plain(*args))[1]  # type: ignore[method-assign]
    ours.step(*batch())
    assert calls[0] == RECORDED["loss"][0]


def test_own_model_inputs() -> None:
    class Mine(PPOTrainer):
        def prepare_model_inputs(self, queries: Any, responses: Any) -> Any:
            inputs = super().prepare_model_inputs(queries, responses)
            return {key: torch.nn.functional.pad(value, (0, 5)) for key, value in inputs.items()}

    own = trainer("gpt2", cls=Mine).step(*batch())
    plain = trainer("gpt2").step(*batch())
    assert own["objective/logprobs"].shape == (8, 15)
    assert own["ppo/loss/total"] == pytest.approx(plain["ppo/loss/total"], rel=1e-4)


def test_the_dataloader_generation_and_the_logs_may_be_replaced() -> None:
    class Mine(PPOTrainer):
        def prepare_dataloader(self, dataset: Any, data_collator: Any = None) -> Any:
            return torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=data_collator)

        def generate(self, query_tensor: Any, **kwargs: Any) -> Any:
            return [response[:1] for response in super().generate(query_tensor, return_prompt=False, **kwargs)]

        def log_stats(self, stats: Any, batch: Any, rewards: Any, *args: Any) -> None:
            self.logged = stats | {"mine": 1}
            super().log_stats(stats, batch, rewards, *args)

    data = datasets.Dataset.from_dict({"input_ids": [[4, 5, 6]] * 6})
    ours = Mine(config(), with_value_head("gpt2"), None, tokenizer(), dataset=data, data_collator=list)
    assert [len(rows) for rows in ours.dataloader] == [3, 3]
    assert [len(r) for r in ours.generate(batch()[0], max_new_tokens=4, do_sample=False)] == [1] * 8
    ours.log_stats({}, {"query": ["q"] * 8, "response": ["r"] * 8}, [0.0] * 8)
    assert ours.logged == {"mine": 1}


# --- the fast path is the plain path ---------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"whiten_rewards": True, "kl_penalty": "full"},
    "gpt_neox": {"loss_normalization": "tokens", "gradient_accumulation_steps": 2, "mini_batch_size": 2},
    "opt": {"use_score_norm": True, "max_grad_norm": 0.5},
    "t5": {"kl_penalty": "full"},
    "bart": {"mini_batch_size": 2, "gradient_accumulation_steps": 4},
    "lora": {"kl_penalty": "abs"},
    "lora on the head": {},
}


def build(name: str, cls: type) -> PPOTrainer:
    lora = None
    if name.startswith("lora"):
        more = {"target_modules": ["c_attn", "lm_head"]} if "head" in name else {"fan_in_fan_out": True}
        torch.manual_seed(1)
        lora = LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **more)
    model = with_value_head("gpt2" if lora else name, **({"peft_config": lora} if lora else {}))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    reference = None if lora else with_value_head(name, seed=3)
    return cls(config(**OPTIONS[name]), model, reference, tokenizer(), optimizer=optimizer)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.*tie_word_embeddings", "ignore:the KL divergence")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_overriding_everything_with_super_changes_no_number(name: str, masked: bool) -> None:
    seen = []
    for cls in (PPOTrainer, recording(HOOKS)[0]):
        ours = build(name, cls)
        for step in range(2):
            queries, responses, scores = batch(7, seed=step)
            if name in SEQ2SEQ:  # as `generate` gives them
                start = ours.model.pretrained_model.config.decoder_start_token_id
                responses = [torch.cat((torch.tensor([start]), response)) for response in responses]
            masks = [(torch.arange(len(r)) % 3 != 2).long() for r in responses] if masked else None
            stats = ours.step(queries, responses, scores, masks)
        numbers = {key: value for key, value in stats.items() if isinstance(value, float) and "time/" not in key}
        seen.append((numbers, weights(ours.model), stats["objective/kl_dist"]))
    fast, plain = seen
    assert fast[0].keys() == plain[0].keys()
    for key, value in plain[0].items():
        assert fast[0][key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    for parameter, value in plain[1].items():
        torch.testing.assert_close(fast[1][parameter], value, rtol=0, atol=1e-5, msg=parameter)
    assert fast[2] == pytest.approx(plain[2], rel=1e-5, abs=1e-5)
