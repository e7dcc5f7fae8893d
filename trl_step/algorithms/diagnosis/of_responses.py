"""What is wrong with the responses that `step` was given: how they were drawn, how they end, what else is in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from trl_step.algorithms.diagnosis.findings import PATIENCE, Circumstances, Diagnosis, for_long
from trl_step.algorithms.diagnosis.signs import Signs

SAMPLING_SETTINGS = "sampling settings"
"""The diagnosis of which a trainer warns in `generate` already."""
KL_FLOOR = -1.0
"""Nats per sample: below it one step is enough to call a KL negative."""
KL_DRIFT = -0.05
"""Nats per sample: a KL below it for `PATIENCE` steps in a row is negative, too; chance would change the sign."""
KL_AT_START = 0.05
"""Nats per sample: a reference that equals the policy is nearer than this in the first step."""
SURPRISE_TOLERANCE = 0.2
"""Relative difference of the responses' surprise and the policy's entropy, if they come from different
distributions. Sound runs of the sentiment example stay below 0.07."""
SURPRISE_FLOOR = 0.1
"""Nats per token: smaller differences are left alone."""
MISMATCH = 0.05
"""Nats per token between the sampler's log-probs and the policy's; a server in bfloat16 stays below."""
SLOPE_TOLERANCE = 0.15
"""Of the slope of the one over the other; another temperature moves it by about as much as itself."""
UNRELATED = 0.1
"""A slope below it is that of no temperature at which anybody samples."""
TRUNCATED = 0.005
"""Nats per token: with top_p=0.95 a sampler's log-probs are up to 0.05 above the policy's, and never below."""
TRUNCATED_SHARE = 0.02
"""Of the tokens that a truncating sampler may seem to find less likely, by rounding."""
END_PATIENCE = 30
"""Steps in a row without an end token; a policy that is cut by `max_new_tokens` ends now and then."""
LOST_END_PATIENCE = 3
"""The same if responses of many lengths came from elsewhere: no limit cut them, so their ends were lost."""


# --- what is given to step --------------------------------------------------------------------------------------------


def inputs(seen: Circumstances) -> Iterator[Diagnosis]:
    """Answers that are no samples of the policy as it is."""
    if seen.repeats_query:
        yield Diagnosis(
            "query in response",
            "nearly every response begins with the whole of its query: the prompt is trained as if the policy had "
            "written it",
            "call generate(..., return_prompt=False), or cut the query off: response[len(query):]",
        )
    if seen.again and not seen.sampled_by_trainer and not seen.given_logprobs:
        yield Diagnosis(
            "same responses",
            "step was given the queries and responses of the step before: they are trained on as if the policy that "
            "they have moved had drawn them",
            "draw new responses for every step; for more passes over a batch raise ppo_epochs, and for responses that "
            "are older on purpose give step the log-probs of the policy that drew them, as old_logprobs",
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


def padding(seen: Circumstances) -> Iterator[Diagnosis]:
    """Padding that counts as a part of the samples."""
    if seen.padded:
        yield Diagnosis(
            "padding",
            f"{' and '.join(seen.padded)} with the padding token: step takes every token that it is given as a part of "
            "the sample, padding too",
            "give step (and generate) each sample without its padding, query[attention_mask.bool()] for a query and "
            "the tokens up to the end token for a response; step pads by itself",
        )


def ends(recent: Sequence[Signs], seen: Circumstances) -> Iterator[Diagnosis]:
    """Responses that never come to their end, or lost it."""
    if seen.given_masks:
        return
    none_ended = [signs.ended == 0 for signs in recent]
    ids = f" ({', '.join(map(str, seen.end_tokens))})" if seen.end_tokens else ""
    lost = [none and signs.length_deviation > 0 for none, signs in zip(none_ended, recent, strict=True)]
    if seen.known and not seen.sampled_by_trainer and for_long(lost, LOST_END_PATIENCE):
        yield Diagnosis(
            "no end token",
            f"the responses differ in length, but in {LOST_END_PATIENCE} steps none ended with an end-of-sequence token"
            f"{ids}",
            "leave that token at the end of the responses that are given to step (skip_special_tokens=True and cutting "
            "at the end token lose it), or the policy never learns to stop; and see that tokenizer.eos_token and the "
            "model's generation_config.eos_token_id name the token that it ends with",
        )
    elif for_long(none_ended, END_PATIENCE):
        yield Diagnosis(
            "no end token",
            f"no response of the last {END_PATIENCE} steps ended with an end-of-sequence token{ids}: all were cut",
            "raise max_new_tokens, drop min_length and min_new_tokens, and see that tokenizer.eos_token is the token "
            "that the model ends with. Give unfinished responses a price (trl_step.extras.MissingEosPenalty), unless "
            "they are meant to be cut, or are episodes that their environment ends",
        )


# --- a divergence below 0 ---------------------------------------------------------------------------------------------


def negative_kl(first: Signs, recent: Sequence[Signs], circumstances: Circumstances) -> Iterator[Diagnosis]:
    """A divergence below 0: the responses are not the policy's."""
    now = recent[-1]
    if not (now.kl < KL_FLOOR or for_long([signs.kl < KL_DRIFT for signs in recent], PATIENCE)):
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


def another_distribution(recent: Sequence[Signs], seen: Circumstances) -> Iterator[Diagnosis]:
    """Responses of another distribution, from the numbers alone; a cause that is known has its own diagnosis."""
    is_known = seen.sampling_settings or seen.likeliest or seen.given_logprobs or not math.isnan(recent[-1].mismatch)
    gaps = [signs.surprise - signs.entropy for signs in recent]
    limits = [max(SURPRISE_FLOOR, SURPRISE_TOLERANCE * signs.entropy) for signs in recent]
    far = [abs(gap) > limit and signs.kl > KL_DRIFT for gap, limit, signs in zip(gaps, limits, recent, strict=True)]
    same_side = min(gaps[-PATIENCE:]) * max(gaps[-PATIENCE:]) > 0
    if not is_known and for_long(far, PATIENCE) and same_side:
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


# --- the sampler's own log-probs --------------------------------------------------------------------------------------


def sampler_mismatch(now: Signs) -> Iterator[Diagnosis]:
    """Log-probs of a sampler that are not the policy's."""
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
