"""Each diagnosis is provoked from the outside, as a script would do it, and a healthy run gets none."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.environment.environment_tools import environment, tiny_gpt2
from tests.tiny import EOS, PAD, VOCABULARY, batch, config, trainer, with_value_head
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer
from trl_step.algorithms.diagnosis.findings import ORDER
from trl_step.algorithms.diagnosis.of_responses import END_PATIENCE
from trl_step.extras import doctor

QUERIES = batch(16)[0]
SCORES = batch(16)[2]
RECORDED = json.loads(Path(__file__).with_name("sentiment_stats.json").read_text(encoding="utf-8"))
PURE = {"do_sample": True, "top_k": 0, "max_new_tokens": 12}


def names(run: Any) -> list[str]:
    return [finding.diagnosis.name for finding in doctor.diagnose(run)]


def sharpened(by: float, dropout: float = 0.0, seed: int = 0) -> Any:
    """A model whose logits are `by` times as large."""
    model = with_value_head("gpt2", dropout=dropout, seed=seed)
    model.pretrained_model.transformer.ln_f.weight.data *= by
    return model


def healthy_step(ours: PPOTrainer, seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    responses = ours.generate(QUERIES, return_prompt=False, **PURE)
    return ours.step(QUERIES, responses, torch.randn(len(QUERIES)).tolist())


def after_training(by: float, sharp: float = 20.0, dropout: float = 0.0) -> PPOTrainer:
    """A trainer whose first step was sound and whose policy has since moved: its logits are `by` times as large."""
    ours = trainer(sharpened(sharp, dropout), batch_size=16, learning_rate=0.0)
    healthy_step(ours)
    ours.model.pretrained_model.transformer.ln_f.weight.data *= by
    return ours


def own_sampling(ours: PPOTrainer, left: bool, **options: Any) -> list[torch.Tensor]:
    """Responses of a script's own call of `model.generate`."""
    width = max(len(query) for query in QUERIES)
    ids = torch.full((len(QUERIES), width), PAD)
    for row, query in zip(ids, QUERIES, strict=True):
        row[width - len(query) if left else 0 :][: len(query)] = query
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = ours.model.generate(
            input_ids=ids, attention_mask=(ids != PAD).long(), eos_token_id=None, pad_token_id=PAD, **PURE, **options
        )
    return list(drawn[:, width:])


@contextmanager
def told(finding: str, advice: str) -> Iterator[None]:
    """Warned of once, with these words (regular expressions)."""
    with pytest.warns(UserWarning, match=finding) as caught:
        yield
    (seen,) = [warning for warning in caught if re.match(finding, str(warning.message))]
    assert re.search(advice, str(seen.message)), str(seen.message)
    assert seen.filename == __file__, "it points at the line that called step"


NEGATIVE = r"the KL divergence to the reference is -\d"


def test_a_healthy_run_gets_no_diagnosis() -> None:
    ours = trainer("gpt2", batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = [healthy_step(ours, seed) for seed in range(12)]
    assert doctor.diagnose(ours) == doctor.diagnose(stats) == []
    assert doctor.report(ours).startswith("nothing is wrong")


def test_the_recorded_run_of_the_sentiment_example_gets_none() -> None:
    assert len(RECORDED) == 60
    for step in RECORDED:  # what tells the causes of a negative KL apart: here the policy itself sampled
        assert step["objective/token_surprise"] == pytest.approx(step["ppo/policy/entropy"], rel=0.1)
    assert doctor.diagnose(RECORDED) == []


def test_findings_come_in_the_order_of_what_to_mend_first() -> None:
    steps = [dict(step) for step in RECORDED[:20]]
    for number, step in enumerate(steps):
        step |= {"ppo/val/var_explained": -53.0, "objective/token_surprise": 0.2}
        step |= {"ppo/policy/approxkl": 12.0} if number == 15 else {}
    found = doctor.diagnose(steps)
    assert [finding.diagnosis.name for finding in found] == ["another distribution", "large steps", "value head"]
    assert [finding.step for finding in found] == [10, 16, 10]
    assert [line.partition(":")[0] for line in doctor.report(steps).splitlines()] == ["step 10", "step 16", "step 10"]


def test_every_diagnosis_is_on_the_page_in_this_order() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "logging.md").read_text(encoding="utf-8")
    table = page.partition("| diagnosis | made if |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([a-z][\w ]+) \|", table, re.MULTILINE | re.IGNORECASE) == list(ORDER)


def test_temperature_in_sampling() -> None:
    ours = after_training(by=3.0)
    responses = ours.generate(QUERIES, return_prompt=False, temperature=4.0, **PURE)
    with told(NEGATIVE, r"temperature or truncation in sampling: generate ran with temperature=4 .*temperature to the"):
        ours.step(QUERIES, responses, SCORES)
    assert names(ours) == ["sampling settings", "negative KL"]


@pytest.mark.parametrize(
    ("options", "named"),
    [({"top_k": 2}, r"top_k=2\b"), ({"bad_words_ids": [[i] for i in range(4, 40)]}, "bad_words_ids")],
)
def test_truncation_in_sampling(options: dict[str, Any], named: str) -> None:
    ours = after_training(by=0.3)  # flatter than the reference: what truncation leaves was likelier to the reference
    if "bad_words_ids" in options:
        ours = after_training(by=3.0)
    responses = ours.generate(QUERIES, return_prompt=False, **(PURE | options))
    with told(NEGATIVE, rf"truncation in sampling: generate ran with .*{named}.*top_k=0, top_p=1\.0"):
        ours.step(QUERIES, responses, SCORES)


def test_truncation_in_a_script_s_own_sampling_is_seen_from_the_numbers() -> None:
    ours = after_training(by=0.3)
    responses = own_sampling(ours, left=True, temperature=0.2)
    with told(NEGATIVE, r"truncation in sampling: the responses are likelier than the policy's own \(surprise [\d.]+"):
        stats = ours.step(QUERIES, responses, SCORES)
    assert stats["objective/token_surprise"] < 0.8 * stats["ppo/policy/entropy"]


def test_dropout_in_sampling() -> None:
    ours = after_training(by=3.0, dropout=0.6)
    ours.model.train()  # as scripts of release 0.7 left it
    responses = own_sampling(ours, left=True)
    with told(NEGATIVE, r"dropout in sampling: the model is in train mode with a dropout rate of 0\.6"):
        ours.step(QUERIES, responses, SCORES)


def test_padding_side() -> None:
    ours = after_training(by=3.0)
    assert ours.tokenizer.padding_side == "right"
    responses = own_sampling(ours, left=False)
    with told(NEGATIVE, r"padding side: .*tokenizer\.padding_side = \"left\""):
        ours.step(QUERIES, responses, SCORES)


def test_a_reference_that_is_not_the_start() -> None:
    ours = trainer(sharpened(30.0), ref_model=sharpened(30.0, seed=5), batch_size=16, learning_rate=0.0)
    torch.manual_seed(0)
    responses = [ours.ref_model.generate(query[None], **PURE)[0, len(query) :] for query in QUERIES]
    with told(NEGATIVE, r"reference: before any update the KL was -\d.*ref_model=None"):
        ours.step(QUERIES, responses, SCORES)


def test_responses_of_other_weights() -> None:
    ours = after_training(by=3.0)
    torch.manual_seed(0)
    responses = [torch.randint(4, VOCABULARY, (12,)) for _ in QUERIES]
    ours.tokenizer.padding_side = "left"
    with told(NEGATIVE, r"another distribution in sampling: the responses are less likely than the policy's own"):
        ours.step(QUERIES, responses, SCORES)


def test_the_first_ratio_with_log_probs_of_another_law() -> None:
    ours = trainer(sharpened(20.0), batch_size=16)
    responses = ours.generate(QUERIES, return_prompt=False, **PURE)
    wrong = [torch.full((len(response),), -3.0) for response in responses]
    with told(r"the ratio of policy and old policy is off by \d", "old_logprobs given to step are not those of this"):
        ours.step(QUERIES, responses, SCORES, old_logprobs=wrong)
    assert "first ratio" in names(ours)


def test_the_first_ratio_with_randomness_in_the_forward_pass() -> None:
    class Noisy(PPOTrainer):
        def batched_forward_pass(self, *args: Any, **kwargs: Any) -> Any:
            logprobs, *rest = super().batched_forward_pass(*args, **kwargs)
            return logprobs + 0.3 * torch.randn(logprobs.shape), *rest

    ours = trainer("gpt2", cls=Noisy)
    with told("the ratio of policy and old policy is off", "randomness in an overridden batched_forward_pass"):
        ours.step(*batch())


def test_entropy_collapse() -> None:
    ours = trainer(sharpened(20.0), batch_size=16, learning_rate=0.0)
    healthy_step(ours)
    ours.model.pretrained_model.transformer.ln_f.weight.data *= 20
    with told(r"the policy's entropy fell to 0\.\d+ nats per token, from \d", "init_kl_coef.*learning_rate"):
        healthy_step(ours, seed=1)


def test_a_value_head_that_stays_worse_than_the_mean() -> None:
    ours = trainer("gpt2", learning_rate=0.0, ppo_epochs=1, mini_batch_size=8)
    ours.model.v_head.summary.bias.data += 50.0
    finding = r"the explained variance was below -3 for 10 steps \(now -\d"
    with told(finding, "vf_coef or learning_rate.*use_score_scaling"):
        for _ in range(30):
            stats = ours.step(*batch())
    assert stats["ppo/val/var_explained"] < 0
    assert [f.step for f in doctor.diagnose(ours) if f.diagnosis.name == "value head"] == [10]


@pytest.mark.parametrize("options", [{}, {"score_clip": 0.1}])
def test_scores_that_never_change(options: dict[str, Any]) -> None:
    ours = trainer("gpt2", ppo_epochs=1, **options)
    with told(r"every score of the last 3 steps was 0\.1:", "reward function.*score_clip"):
        for seed in range(4):
            queries, responses, scores = batch(seed=seed)
            ours.step(queries, responses, [abs(score) + 1 for score in scores] if options else [0.1] * 8)


def test_ends_that_are_never_reached() -> None:
    ours = trainer("gpt2", ppo_epochs=1, mini_batch_size=8, learning_rate=0.0)
    with told(rf"no response of the last 30 steps ended with an end-of-sequence token \({EOS}\)", "raise max_new_toke"):
        for _ in range(30):
            responses = ours.generate(QUERIES[:8], return_prompt=False, **PURE | {"max_new_tokens": 2, "top_p": 1.0})
            responses = [response.masked_fill(response == EOS, 5) for response in responses]
            ours.step(QUERIES[:8], responses, SCORES[:8])


def test_ends_that_were_cut_off_before_the_step() -> None:
    ours = trainer("gpt2", ppo_epochs=1)
    with told("the responses differ in length, but in 3 steps none ended", "leave that token at the end"):
        for seed in range(3):
            ours.step(*batch(seed=seed))


@pytest.mark.parametrize("with_masks", [True, False])
def test_episodes_that_end_as_their_environment_says(with_masks: bool) -> None:
    """The submit token ends them. Given without their masks they look like responses that lost their ends."""
    played = environment(lambda text: "so it is <submit>" if "?" in text else "<submit>")
    queries, responses, masks, _, histories = played.run(["how?", "so.", "why? why?", "well."])
    assert [history.last_text_segment.endswith("<submit>") for history in histories] == [True] * 4
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2())
    ours = PPOTrainer(config(batch_size=4, ppo_epochs=1), model, None, played.tokenizer)
    for step in range(END_PATIENCE):
        ours.step(queries, responses, [float(step), 1.0, 2.0, 3.0], masks if with_masks else None)
    assert ("no end token" in names(ours)) is not with_masks


def test_clipping() -> None:
    ours = trainer("gpt2", batch_size=16, learning_rate=0.01, ppo_epochs=16)
    with told(r"the clip decided for [5-9]\d% of the tokens", "lower learning_rate or ppo_epochs"):
        for seed in range(4):
            healthy_step(ours, seed)


def test_log_probs_of_the_sampler_at_another_temperature_or_after_truncation() -> None:
    """A sampler that reports something else than the log-probs of the policy that it sampled from."""

    def logits_of(ours: PPOTrainer, query: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
        ours.model.eval()
        with torch.no_grad():
            return ours.model(torch.cat((query, response))[None])[0][0, len(query) - 1 : -1]

    def nucleus(logits: torch.Tensor, temperature: float) -> torch.Tensor:
        log_p = (logits / temperature).log_softmax(-1)
        ordered, place = log_p.sort(descending=True)
        kept = ordered.exp().cumsum(-1) - ordered.exp() < 0.9
        cut = torch.full_like(log_p, -torch.inf).scatter(1, place, torch.where(kept, ordered, -torch.inf))
        return cut.log_softmax(-1)

    def found(report: Any, temperature: float = 0.6, **sampling: Any) -> list[str]:
        ours = trainer(sharpened(6.0), batch_size=16, learning_rate=0.0, temperature=temperature)
        torch.manual_seed(0)
        responses = ours.generate(QUERIES, return_prompt=False, temperature=temperature, **PURE | sampling)
        given = [
            report(logits_of(ours, query, response), temperature)[torch.arange(len(response)), response]
            for query, response in zip(QUERIES, responses, strict=True)
        ]
        ours.step(QUERIES, responses, SCORES, sampling_logprobs=given)
        return [f.diagnosis.advice for f in doctor.diagnose(ours) if f.diagnosis.name == "sampler mismatch"]

    def rounded(logits: torch.Tensor, temperature: float) -> torch.Tensor:
        return (logits.bfloat16().float() / temperature).log_softmax(-1)

    assert found(rounded) == []
    (advice,) = found(lambda logits, _: logits.log_softmax(-1))
    assert advice.startswith("they are log-probs at another temperature")
    (advice,) = found(nucleus, temperature=1.0, top_p=0.9)
    assert advice.startswith("nearly no token is less likely there, so they are log-probs after truncation")


def test_a_prompt_in_front_of_the_responses_is_told() -> None:
    ours = trainer("gpt2", batch_size=16)
    responses = ours.generate(QUERIES, **PURE)
    with told("nearly every response begins with the whole of its query", "return_prompt=False"):
        ours.step(QUERIES, responses, SCORES)
    assert names(ours) == ["query in response"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_told(value: float) -> None:
    steps = [dict(step) for step in RECORDED[:5]]
    steps[3] |= {"objective/kl": value, "ppo/val/var_explained": math.nan}  # the latter is NaN if returns do not vary
    (finding,) = doctor.diagnose(steps)
    assert (finding.step, finding.diagnosis.name) == (4, "not finite")
    assert finding.diagnosis.finding == "no finite number: objective/kl"


def test_what_cannot_be_judged_is_said() -> None:
    nothing = "no step has a statistic that the doctor reads, such as objective/kl: it cannot judge this run"
    assert doctor.report([{"loss": 1.0}] * 3) == doctor.report([]) == doctor.report(trainer("gpt2")) == nothing
    steps = [{key: value for key, value in step.items() if "val/" not in key} for step in RECORDED[:5]]
    assert doctor.report(steps).splitlines() == [
        "nothing is wrong as far as the statistics show", "not judged, as their statistics are missing: values"
    ]  # fmt: skip


def test_a_saved_run_is_read_like_a_running_one() -> None:
    steps = [dict(step) for step in RECORDED[:20]]
    for step in steps[10:]:
        step["ppo/policy/clipfrac"] = 0.75
    (finding,) = doctor.diagnose(steps)
    assert (finding.step, finding.diagnosis.name) == (13, "clipping")
    assert doctor.report(steps).startswith("step 13: the clip decided for 75% of the tokens")
    assert names({**steps[-1], "objective/kl": -9.0}) == ["negative KL"]
    with pytest.raises(TypeError, match="not str"):
        doctor.diagnose(["stats.json"])
