"""What is wrong with the training: the policy moves too far, the scores say nothing, the values are lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trl_step.algorithms.diagnosis.findings import OFTEN, PATIENCE, WINDOW, Circumstances, Diagnosis, for_long, often
from trl_step.algorithms.diagnosis.signs import Signs

RUNAWAY_KL = 0.5
"""Nats per token of a response: so far from the reference the texts have little to do with it. Sound runs of the
sentiment example stay below 0.3."""
RUNAWAY_KL_OF_SAMPLE = 10.0
"""Nats per sample: short responses are left alone below it."""
FAR_KL = 0.1
"""Nats per token: so far is too far if a sample is beyond `FAR_KL_OF_SAMPLE`, too."""
FAR_KL_OF_SAMPLE = 100.0
"""Nats per sample: with it alone a KL is judged whose responses' length is not known."""
RATIO_ERROR = 0.05
"""Mean |r - 1| before any update; rounding in bfloat16 stays below it."""
ENTROPY_SHARE = 0.1
"""Of the first step's entropy: what is left below it is a collapse."""
ENTROPY_FLOOR = 0.01
"""Nats per token: below it the policy does not sample any more."""
CLIPPED_SHARE = 0.3
"""Of the tokens."""
LARGE_STEP = 0.1
"""Of `ppo/policy/approxkl`, nats per token within a step."""
HUGE_STEP = 1.0
"""The same: one step is enough."""
FALL_OF_SCORE = 2.0
"""Standard deviations of the first step's scores: the mean score is this far below its first value for
`FALL_PATIENCE` steps."""
FALL_PATIENCE = 5
"""Steps in a row with so low a mean score."""
SCORE_PATIENCE = 3
"""Steps in a row with one and the same score."""
SCORE_REACH = 1e-6
"""Weight of a sample's score at its first token; with lambda 0.95 that is a response of 270 tokens."""
LOST_CRITIC = -3.0
"""Explained variance for `PATIENCE` steps: far below what the mean return would give."""
CRITIC_PATIENCE = 30
"""Steps in a row with an explained variance below 0; a fresh value head needs some to find the mean return."""


def lost(now: Signs) -> Iterator[Diagnosis]:
    """Statistics that are no finite numbers."""
    if now.not_finite:
        yield Diagnosis(
            "not finite",
            f"no finite number: {now.not_finite}",
            "the weights are probably lost: go back to a state from before, lower learning_rate, set max_grad_norm, "
            "and train in float32 or bfloat16, not in float16",
        )


def idle(recent: Sequence[Signs]) -> Iterator[Diagnosis]:
    """Steps that change nothing."""
    if for_long([signs.learning_rate == 0 for signs in recent], PATIENCE):
        yield Diagnosis(
            "learning rate",
            f"the learning rate was 0 in the last {PATIENCE} steps: no update changes anything",
            "give the optimizer a learning rate; a lr_scheduler counts every step, so tell it how many there are",
        )
    if often([signs.skipped > 0 for signs in recent]):
        yield Diagnosis(
            "skipped",
            f"mini-batches were left out in {OFTEN} of the last {WINDOW} steps (now {recent[-1].skipped:g}), as their "
            "mean ratio exceeded ratio_threshold: the policy moves too far within a step",
            "lower learning_rate (by 3 to 10 times) or ppo_epochs, set max_grad_norm, and see that the old_logprobs "
            "given to step, if any, are those of these responses",
        )


# --- the policy -------------------------------------------------------------------------------------------------------


def far_from_reference(recent: Sequence[Signs]) -> Iterator[Diagnosis]:
    """A policy that has left its reference."""
    now = recent[-1]
    far = [
        (s.kl > RUNAWAY_KL_OF_SAMPLE and s.kl > RUNAWAY_KL * s.length)
        or (s.kl > FAR_KL_OF_SAMPLE and not s.kl <= FAR_KL * s.length)
        for s in recent
    ]
    if often(far):
        of_token = f" ({now.kl / now.length:.1f} per token)" if now.length > 0 else ""
        yield Diagnosis(
            "runaway KL",
            f"the KL divergence to the reference is {now.kl:.0f} nats per sample{of_token}: the policy has left "
            "the reference, and a score that still rises is probably exploited",
            "read some responses; raise init_kl_coef, lower target (with adap_kl_ctrl=True) or learning_rate, and go "
            "back to a state from before",
        )


def policy(first: Signs, recent: Sequence[Signs], seen: Circumstances) -> Iterator[Diagnosis]:
    """A policy that is not the old one at the start of a step, that samples no more, or that moves too far."""
    now = recent[-1]
    if now.ratio_error > RATIO_ERROR:
        yield Diagnosis(
            "first ratio",
            f"the ratio of policy and old policy is off by {now.ratio_error:.3f} on average in the first mini-batch, "
            "before any update; it should be 1",
            "the old_logprobs given to step are not those of this policy under PPOConfig.temperature; leave them out, "
            "or have the sampler use the current weights and return log-probs before any truncation"
            if seen.given_logprobs
            else "two passes of the same weights disagree. Look for randomness in an overridden batched_forward_pass "
            "or in a module that model.eval() does not switch off, and for a precision that is too low "
            '(accelerator_kwargs={"mixed_precision": "no"} or float32 weights show it)',
        )
    if now.entropy < ENTROPY_FLOOR or now.entropy < ENTROPY_SHARE * first.entropy:
        yield Diagnosis(
            "entropy collapse",
            f"the policy's entropy fell to {now.entropy:.3f} nats per token, from {first.entropy:.3f} in the first "
            "step: it writes nearly the same response each time",
            "raise init_kl_coef or lower target, lower learning_rate or ppo_epochs, and read some responses: a reward "
            "that one fixed text satisfies has to change",
        )
    if often([signs.clipped > CLIPPED_SHARE for signs in recent]):
        yield Diagnosis(
            "clipping",
            f"the clip decided for {now.clipped:.0%} of the tokens, in {OFTEN} of the last {WINDOW} steps for more "
            f"than {CLIPPED_SHARE:.0%}: that part of the batch has no gradient any more",
            "lower learning_rate or ppo_epochs, set max_grad_norm or early_stopping=True, or take larger mini-batches "
            "(mini_batch_size, gradient_accumulation_steps)",
        )
    huge = now.approxkl > HUGE_STEP
    if huge or often([signs.approxkl > LARGE_STEP for signs in recent]):
        how_often = "" if huge else f", in {OFTEN} of the last {WINDOW} steps by more than {LARGE_STEP:g}"
        yield Diagnosis(
            "large steps",
            f"the policy moves by {now.approxkl:.2g} nats per token within a step (ppo/policy/approxkl){how_often}: "
            "later epochs train on samples of another policy",
            "lower learning_rate (by 3 to 10 times) or ppo_epochs, or set early_stopping=True with a small target_kl",
        )


# --- scores and values ------------------------------------------------------------------------------------------------


def scores(first: Signs, recent: Sequence[Signs]) -> Iterator[Diagnosis]:
    """Scores that fall, or are all the same."""
    score = recent[-1].mean_score
    low = [s.mean_score < first.mean_score - FALL_OF_SCORE * first.std_score for s in recent]
    if first.std_score > 0 and for_long(low, FALL_PATIENCE):
        yield Diagnosis(
            "falling score",
            f"the mean score is {score:.3g}, from {first.mean_score:.3g} (sd {first.std_score:.2g}) in the first step: "
            "the policy gets worse at what it is scored for",
            "lower learning_rate, go back to a state from before, and see that the score is high for what is wanted",
        )
    same = [abs(signs.mean_score - score) <= 1e-6 * abs(score) and signs.std_score <= 1e-6 for signs in recent]
    if for_long(same, SCORE_PATIENCE):
        yield Diagnosis(
            "constant scores",
            f"every score of the last {SCORE_PATIENCE} steps was {score:g}: there is nothing to learn but the KL "
            "penalty",
            "look at what the reward function is given (decoded responses, without special tokens?) and at score_clip, "
            "which may cut all scores to one value",
        )


def reach_of_scores(now: Signs, seen: Circumstances) -> Iterator[Diagnosis]:
    """Scores that do not reach the beginning of long responses."""
    if seen.lam is None or not now.length > 1:
        return
    weight = seen.lam ** (now.length - 1)
    if weight < SCORE_REACH:
        yield Diagnosis(
            "score reach",
            f"with lambda {seen.lam:g} the score of a response of {now.length:.0f} tokens reaches its first token with "
            f"weight {weight:.0e}: its beginning learns from the values alone",
            "set length_adaptive_alpha=0.05 and value_lam=1.0, or lam=1.0; give rewards for single tokens or turns; or "
            'compare several answers to a prompt (advantage_estimator="grpo"), which needs no values',
        )


def values(recent: Sequence[Signs]) -> Iterator[Diagnosis]:
    """Values that are worse than none."""
    below = for_long([signs.explained < 0 for signs in recent], CRITIC_PATIENCE)
    lost = for_long([signs.explained < LOST_CRITIC for signs in recent], PATIENCE)
    if below or lost:
        limit, steps = (0, CRITIC_PATIENCE) if below else (LOST_CRITIC, PATIENCE)
        yield Diagnosis(
            "value head",
            f"the explained variance was below {limit:g} for {steps} steps (now {recent[-1].explained:.2f}): the "
            "value head predicts returns worse than their mean would",
            "raise vf_coef or learning_rate, scale the scores into a range near 1 (use_score_scaling, use_score_norm), "
            "raise cliprange_value, and see that a model that goes on was loaded with its value head",
        )
