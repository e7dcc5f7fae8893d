"""What the statistics of a run say is wrong with it, in words that name the setting to change.

`diagnose` looks at the steps so far as plain numbers, so it reads a running trainer and a saved run alike. Each
diagnosis says what was seen, and what to do; the limits from which one is made are in `signs`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trl_step.algorithms.signs import (
    CLIP_PATIENCE,
    CLIP_WINDOW,
    CLIPPED_SHARE,
    CRITIC_PATIENCE,
    END_PATIENCE,
    ENTROPY_FLOOR,
    ENTROPY_SHARE,
    FALL_OF_SCORE,
    FALL_PATIENCE,
    FAR_KL,
    FAR_KL_OF_SAMPLE,
    HUGE_STEP,
    KL_AT_START,
    KL_DRIFT,
    KL_FLOOR,
    LARGE_STEP,
    LOST_CRITIC,
    LOST_END_PATIENCE,
    MEMORY,
    MISMATCH,
    PATIENCE,
    RATIO_ERROR,
    RUNAWAY_KL,
    RUNAWAY_KL_OF_SAMPLE,
    SCORE_PATIENCE,
    SCORE_REACH,
    SLOPE_TOLERANCE,
    SURPRISE_FLOOR,
    SURPRISE_TOLERANCE,
    TRUNCATED,
    TRUNCATED_SHARE,
    UNRELATED,
    Signs,
)

SAMPLING_SETTINGS = "sampling settings"
"""The diagnosis of which a trainer warns in `generate` already."""
ORDER = (
    "not finite", "learning rate", "query in response", "padding", "greedy sampling", SAMPLING_SETTINGS, "old weights",
    "sampler mismatch", "first ratio", "negative KL", "another distribution", "constant scores", "skipped",
    "large steps", "clipping", "runaway KL", "entropy collapse", "falling score", "value head", "score reach",
    "no end token",
)  # fmt: skip
"""The diagnoses, in the order of what to mend first: what makes the numbers wrong, then what moves the policy too far,
then what follows from it."""


class Circumstances(NamedTuple):
    """What is known of a step's sampling beside its statistics. The defaults say: nothing."""

    known: bool = False
    """the rest was seen; False for saved statistics"""
    sampled_by_trainer: bool = False
    """`PPOTrainer.generate` drew the responses"""
    sampling_settings: tuple[str, ...] = ()
    """settings of that call under which tokens come from another distribution than the policy's, such as "top_k=50" """
    dropout: float = 0.0
    """highest dropout rate of a module in train mode when `step` was called"""
    pads_right: bool = False
    """prompts of different lengths, a decoder-only model, and a tokenizer that pads on the right"""
    given_logprobs: bool = False
    """`old_logprobs` were handed to `step`"""
    given_masks: bool = False
    """`response_masks` were handed to `step`: the responses are episodes, and their environment says what ends them"""
    end_tokens: tuple[int, ...] = ()
    """ids that end a response"""
    likeliest: tuple[str, ...] = ()
    """settings of `generate` by which the answers are the likeliest ones and no samples, such as "do_sample=False" """
    repeats_query: bool = False
    """nearly every response begins with its query"""
    padded: tuple[str, ...] = ()
    """what seems to be padded in the lists given to `step`: "queries begin", "queries end", "responses end" """
    updates_behind: int = 0
    """updates that the weights which drew the responses lacked when they drew"""

    lam: float | None = None
    """lambda of the advantages, if the score of a sample reaches its tokens through it alone: there are values, and one
    number per sample"""


UNKNOWN = Circumstances()


class Diagnosis(NamedTuple):
    """One thing that is wrong."""

    name: str
    """one of `ORDER`"""
    finding: str
    """what was seen, with its numbers"""
    advice: str
    """the likely cause, and the setting to change"""

    def __str__(self) -> str:
        return f"{self.finding}: {self.advice}"


class Finding(NamedTuple):
    """A diagnosis, and the step in which it was made first."""

    step: int
    """counted from 1"""
    diagnosis: Diagnosis

    def __str__(self) -> str:
        return f"step {self.step}: {self.diagnosis}"


class Checkup:
    """Looks at one step of a run after the other, and remembers what the next look needs.

    Attributes:
        findings: one for each diagnosis that was made, in order.
        steps: how many were looked at.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.steps = 0
        self._first: Signs | None = None
        self._recent: deque[Signs] = deque(maxlen=MEMORY)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from: numbers and texts."""
        return {
            "findings": [(step, tuple(diagnosis)) for step, diagnosis in self.findings],
            "steps": self.steps,
            "first": None if self._first is None else tuple(self._first),
            "recent": [tuple(signs) for signs in self._recent],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.findings = [Finding(step, Diagnosis(*diagnosis)) for step, diagnosis in state["findings"]]
        self.steps = state["steps"]
        self._first = None if state["first"] is None else Signs(*state["first"])
        self._recent = deque((Signs(*signs) for signs in state["recent"]), maxlen=MEMORY)

    def look(self, stats: Mapping[str, Any], circumstances: Circumstances = UNKNOWN) -> list[Diagnosis]:
        """What is wrong in the next step of the run and was not reported for an earlier one."""
        signs = Signs.of(stats)
        self._first = self._first or signs
        self._recent.append(signs)
        self.steps += 1
        known = {finding.diagnosis.name for finding in self.findings}
        new = [d for d in diagnose(self._first, tuple(self._recent), circumstances) if d.name not in known]
        self.findings += [Finding(self.steps, diagnosis) for diagnosis in new]
        return new


def diagnose(first: Signs, recent: Sequence[Signs], circumstances: Circumstances = UNKNOWN) -> list[Diagnosis]:
    """What is wrong in the last step of `recent`.

    Args:
        first: of the run's first step
        recent: of the last steps, oldest first, up to `MEMORY` of them; at least one
        circumstances: of the last step
    """
    return [
        *_lost(recent[-1]),
        *_idle(recent),
        *_inputs(circumstances),
        *_kl(first, recent, circumstances),
        *_distribution(recent, circumstances),
        *_sampler(recent[-1]),
        *_far(recent),
        *_policy(first, recent, circumstances),
        *_scores(first, recent),
        *_reach(recent[-1], circumstances),
        *_value_head(recent),
        *_ends(recent, circumstances),
        *_padding(circumstances),
    ]


def _for_long(flags: Sequence[bool], steps: int) -> bool:
    return len(flags) >= steps and all(flags[-steps:])


def _often(flags: Sequence[bool]) -> bool:
    return sum(flags[-CLIP_WINDOW:]) >= CLIP_PATIENCE


def _lost(now: Signs) -> Iterator[Diagnosis]:
    if now.not_finite:
        yield Diagnosis(
            "not finite",
            f"no finite number: {now.not_finite}",
            "the weights are probably lost: go back to a state from before, lower learning_rate, set max_grad_norm, "
            "and train in float32 or bfloat16, not in float16",
        )


def _idle(recent: Sequence[Signs]) -> Iterator[Diagnosis]:
    if _for_long([signs.learning_rate == 0 for signs in recent], PATIENCE):
        yield Diagnosis(
            "learning rate",
            f"the learning rate was 0 in the last {PATIENCE} steps: no update changes anything",
            "give the optimizer a learning rate; a lr_scheduler counts every step, so tell it how many there are",
        )
    if _often([signs.skipped > 0 for signs in recent]):
        yield Diagnosis(
            "skipped",
            f"mini-batches were left out in {CLIP_PATIENCE} of the last {CLIP_WINDOW} steps (now "
            f"{recent[-1].skipped:g}), as their mean ratio exceeded ratio_threshold: the policy moves too far within a "
            "step",
            "lower learning_rate (by 3 to 10 times) or ppo_epochs, set max_grad_norm, and see that the old_logprobs "
            "given to step, if any, are those of these responses",
        )


# --- a divergence below 0 ----------------------------------------------------------------------------------------


def _kl(first: Signs, recent: Sequence[Signs], circumstances: Circumstances) -> Iterator[Diagnosis]:
    now = recent[-1]
    if not (now.kl < KL_FLOOR or _for_long([signs.kl < KL_DRIFT for signs in recent], PATIENCE)):
        return
    finding = (
        f"the KL divergence to the reference is {now.kl:.2f} nats per sample, and a divergence cannot be negative: the "
        "responses were not sampled from the policy whose log-probs are taken"
    )
    yield Diagnosis("negative KL", finding, _cause_of_negative_kl(first, now, circumstances))


def _cause_of_negative_kl(first: Signs, now: Signs, seen: Circumstances) -> str:
    sharper = now.surprise < (1 - SURPRISE_TOLERANCE) * now.entropy
    flatter = now.surprise > (1 + SURPRISE_TOLERANCE) * now.entropy
    surprise = f"(surprise {now.surprise:.2f}, the policy's entropy {now.entropy:.2f} nats per token)"
    if abs(first.kl) > KL_AT_START:
        return (
            f"reference: before any update the KL was {first.kl:.2f}, so the reference is not the model that training "
            "started from. Pass ref_model=None, or load ref_model from the policy's own checkpoint with the same "
            "dtype, and sample from the policy"
        )
    if seen.sampling_settings:
        return (
            f"temperature or truncation in sampling: generate ran with {', '.join(seen.sampling_settings)}. Sample "
            "with top_k=0, top_p=1.0 and nothing ruled out, and set PPOConfig.temperature to the temperature that you "
            "sample at"
        )
    if seen.dropout and not seen.sampled_by_trainer and not sharper:
        return (
            f"dropout in sampling: the model is in train mode with a dropout rate of {seen.dropout:g}, and the "
            "responses did not come from trainer.generate, which switches dropout off. Call trainer.generate, or "
            "model.eval() before model.generate"
        )
    if seen.pads_right and not seen.sampled_by_trainer and not sharper:
        return (
            "padding side: the tokenizer pads prompts on the right, so a decoder-only model continues padding in "
            'place of the shorter prompts. Call trainer.generate, or set tokenizer.padding_side = "left" for your own '
            "sampling"
        )
    if sharper:
        return (
            f"temperature or truncation in sampling: the responses are likelier than the policy's own {surprise}. "
            "Sample with temperature=1.0 (or set PPOConfig.temperature to yours), top_k=0 and top_p=1.0"
        )
    if flatter:
        return (
            f"another distribution in sampling: the responses are less likely than the policy's own {surprise}. Look "
            "for a temperature above PPOConfig.temperature, dropout (model.eval() before sampling), prompts padded on "
            "the right, or responses of other or older weights, for which step takes old_logprobs"
        )
    return (
        "look for settings of generate that rule tokens out (min_length, min_new_tokens, bad_words_ids, "
        "suppress_tokens, repetition_penalty, top_k, top_p), a temperature other than PPOConfig.temperature, dropout "
        "or right padding in sampling, and queries or responses that were cut or decoded and encoded again"
    )


def _distribution(recent: Sequence[Signs], seen: Circumstances) -> Iterator[Diagnosis]:
    """Responses of another distribution, from the numbers alone; a cause that is known has its own diagnosis."""
    is_known = seen.sampling_settings or seen.likeliest or seen.given_logprobs or not math.isnan(recent[-1].mismatch)
    gaps = [signs.surprise - signs.entropy for signs in recent]
    limits = [max(SURPRISE_FLOOR, SURPRISE_TOLERANCE * signs.entropy) for signs in recent]
    far = [abs(gap) > limit and signs.kl > KL_DRIFT for gap, limit, signs in zip(gaps, limits, recent, strict=True)]
    same_side = min(gaps[-PATIENCE:]) * max(gaps[-PATIENCE:]) > 0
    if not is_known and _for_long(far, PATIENCE) and same_side:
        now, likelier = recent[-1], gaps[-1] < 0
        yield Diagnosis(
            "another distribution",
            f"the responses are {'likelier' if likelier else 'less likely'} than the policy's own samples would be "
            f"(surprise {now.surprise:.2f}, the policy's entropy {now.entropy:.2f} nats per token): the KL estimate "
            "and the policy gradient are biased",
            "look for greedy sampling (do_sample=False), top_k, top_p or a low temperature in sampling: sample with "
            "do_sample=True, top_k=0, top_p=1.0 and the temperature of PPOConfig"
            if likelier
            else "look for a temperature above PPOConfig.temperature, dropout in sampling (model.eval() before it), "
            "prompts padded on the right, responses of another model, or queries that are given as a part of the "
            "responses (return_prompt=False)",
        )


# --- what is given to step ---------------------------------------------------------------------------------------


def _inputs(seen: Circumstances) -> Iterator[Diagnosis]:
    if seen.repeats_query:
        yield Diagnosis(
            "query in response",
            "nearly every response begins with the whole of its query: the prompt is trained as if the policy had "
            "written it",
            "call generate(..., return_prompt=False), or cut the query off: response[len(query):]",
        )
    if seen.sampling_settings:
        yield Diagnosis(
            SAMPLING_SETTINGS,
            f"responses are sampled with {', '.join(seen.sampling_settings)}, but log-probs are those of the whole "
            "distribution at PPOConfig.temperature: the KL estimate is biased and may turn negative",
            "sample with top_k=0, top_p=1.0, the temperature of PPOConfig, and nothing ruled out",
        )
    if seen.updates_behind:
        yield Diagnosis(
            "old weights",
            f"the sampler drew responses with weights that are {seen.updates_behind} update(s) older than the policy's",
            "have its update take the weights over, and see whether the server loaded them; for answers that are older "
            "on purpose give step their log-probs as sampling_logprobs, and set importance_correction",
        )
    if seen.likeliest:
        yield Diagnosis(
            "greedy sampling",
            f"step was given answers of generate with {', '.join(seen.likeliest)}: they are the likeliest ones and no "
            "samples of the policy, so the KL estimate and the policy gradient are biased",
            "call generate with do_sample=True, num_beams=1, top_k=0 and top_p=1.0",
        )


def _far(recent: Sequence[Signs]) -> Iterator[Diagnosis]:
    now = recent[-1]
    far = [
        (s.kl > RUNAWAY_KL_OF_SAMPLE and s.kl > RUNAWAY_KL * s.length)
        or (s.kl > FAR_KL_OF_SAMPLE and not s.kl <= FAR_KL * s.length)
        for s in recent
    ]
    if _often(far):
        of_token = f" ({now.kl / now.length:.1f} per token)" if now.length > 0 else ""
        yield Diagnosis(
            "runaway KL",
            f"the KL divergence to the reference is {now.kl:.0f} nats per sample{of_token}: the policy has left "
            "the reference, and a score that still rises is probably exploited",
            "read some responses; raise init_kl_coef, lower target (with adap_kl_ctrl=True) or learning_rate, and go "
            "back to a state from before",
        )


# --- the sampler's own log-probs ---------------------------------------------------------------------------------


def _sampler(now: Signs) -> Iterator[Diagnosis]:
    tilted = abs(now.mismatch_slope - 1) > SLOPE_TOLERANCE
    truncated = now.mismatch > TRUNCATED and now.mismatch_below < TRUNCATED_SHARE
    if not (abs(now.mismatch) > MISMATCH or tilted or truncated):
        return
    finding = (
        f"sampling_logprobs are {now.mismatch:+.3f} nats per token from the policy's (slope {now.mismatch_slope:.2f}, "
        f"{now.mismatch_below:.0%} of the tokens less likely)"
    )
    if truncated:
        advice = (
            "nearly no token is less likely there, so they are log-probs after truncation (top_k, top_p, min_p), which "
            "share out what was cut off. Sample without truncation, or have the sampler report log-probs before it"
        )
    elif now.mismatch_slope < UNRELATED:
        advice = (
            "they do not rise and fall with the policy's. Look for log-probs shifted by a token, in the order of other "
            "samples, or of another model"
        )
    elif tilted:
        advice = (
            "they are log-probs at another temperature than PPOConfig.temperature. Have the sampler report log-probs "
            'of the scaled logits (vLLM: logprobs_mode="processed_logprobs"), and set PPOConfig.temperature to the '
            "temperature that it samples at"
        )
    else:
        advice = (
            "look for older weights in the sampler, another precision, or token ids that went through text and back"
        )
    yield Diagnosis("sampler mismatch", finding, advice)


# --- the policy --------------------------------------------------------------------------------------------------


def _policy(first: Signs, recent: Sequence[Signs], seen: Circumstances) -> Iterator[Diagnosis]:
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
    if _often([signs.clipped > CLIPPED_SHARE for signs in recent]):
        yield Diagnosis(
            "clipping",
            f"the clip decided for {now.clipped:.0%} of the tokens, in {CLIP_PATIENCE} of the last {CLIP_WINDOW} steps "
            f"for more than {CLIPPED_SHARE:.0%}: that part of the batch has no gradient any more",
            "lower learning_rate or ppo_epochs, set max_grad_norm or early_stopping=True, or take larger mini-batches "
            "(mini_batch_size, gradient_accumulation_steps)",
        )
    huge = now.approxkl > HUGE_STEP
    if huge or _often([signs.approxkl > LARGE_STEP for signs in recent]):
        often = "" if huge else f", in {CLIP_PATIENCE} of the last {CLIP_WINDOW} steps by more than {LARGE_STEP:g}"
        yield Diagnosis(
            "large steps",
            f"the policy moves by {now.approxkl:.2g} nats per token within a step (ppo/policy/approxkl){often}: later "
            "epochs train on samples of another policy",
            "lower learning_rate (by 3 to 10 times) or ppo_epochs, or set early_stopping=True with a small target_kl",
        )


# --- scores, value head, ends ------------------------------------------------------------------------------------


def _scores(first: Signs, recent: Sequence[Signs]) -> Iterator[Diagnosis]:
    score = recent[-1].mean_score
    low = [s.mean_score < first.mean_score - FALL_OF_SCORE * first.std_score for s in recent]
    if first.std_score > 0 and _for_long(low, FALL_PATIENCE):
        yield Diagnosis(
            "falling score",
            f"the mean score is {score:.3g}, from {first.mean_score:.3g} (sd {first.std_score:.2g}) in the first step: "
            "the policy gets worse at what it is scored for",
            "lower learning_rate, go back to a state from before, and see that the score is high for what is wanted",
        )
    same = [abs(signs.mean_score - score) <= 1e-6 * abs(score) and signs.std_score <= 1e-6 for signs in recent]
    if _for_long(same, SCORE_PATIENCE):
        yield Diagnosis(
            "constant scores",
            f"every score of the last {SCORE_PATIENCE} steps was {score:g}: there is nothing to learn but the KL "
            "penalty",
            "look at what the reward function is given (decoded responses, without special tokens?) and at score_clip, "
            "which may cut all scores to one value",
        )


def _reach(now: Signs, seen: Circumstances) -> Iterator[Diagnosis]:
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


def _value_head(recent: Sequence[Signs]) -> Iterator[Diagnosis]:
    below = _for_long([signs.explained < 0 for signs in recent], CRITIC_PATIENCE)
    lost = _for_long([signs.explained < LOST_CRITIC for signs in recent], PATIENCE)
    if below or lost:
        limit, steps = (0, CRITIC_PATIENCE) if below else (LOST_CRITIC, PATIENCE)
        yield Diagnosis(
            "value head",
            f"the explained variance was below {limit:g} for {steps} steps (now {recent[-1].explained:.2f}): the "
            "value head predicts returns worse than their mean would",
            "raise vf_coef or learning_rate, scale the scores into a range near 1 (use_score_scaling, use_score_norm), "
            "raise cliprange_value, and see that a model that goes on was loaded with its value head",
        )


def _ends(recent: Sequence[Signs], seen: Circumstances) -> Iterator[Diagnosis]:
    if seen.given_masks:
        return
    none_ended = [signs.ended == 0 for signs in recent]
    ids = f" ({', '.join(map(str, seen.end_tokens))})" if seen.end_tokens else ""
    lost = [none and signs.length_deviation > 0 for none, signs in zip(none_ended, recent, strict=True)]
    if seen.known and not seen.sampled_by_trainer and _for_long(lost, LOST_END_PATIENCE):
        yield Diagnosis(
            "no end token",
            f"the responses differ in length, but in {LOST_END_PATIENCE} steps none ended with an end-of-sequence token"
            f"{ids}",
            "leave that token at the end of the responses that are given to step (skip_special_tokens=True and cutting "
            "at the end token lose it), or the policy never learns to stop; and see that tokenizer.eos_token and the "
            "model's generation_config.eos_token_id name the token that it ends with",
        )
    elif _for_long(none_ended, END_PATIENCE):
        yield Diagnosis(
            "no end token",
            f"no response of the last {END_PATIENCE} steps ended with an end-of-sequence token{ids}: all were cut",
            "raise max_new_tokens, drop min_length and min_new_tokens, and see that tokenizer.eos_token is the token "
            "that the model ends with. Give unfinished responses a price (trl_step.extras.MissingEosPenalty), unless "
            "they are meant to be cut, or are episodes that their environment ends",
        )


def _padding(seen: Circumstances) -> Iterator[Diagnosis]:
    if seen.padded:
        yield Diagnosis(
            "padding",
            f"{' and '.join(seen.padded)} with the padding token: step takes every token that it is given as a part of "
            "the sample, padding too",
            "give step (and generate) each sample without its padding, query[attention_mask.bool()] for a query and "
            "the tokens up to the end token for a response; step pads by itself",
        )
