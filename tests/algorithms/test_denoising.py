"""The distribution of a denoising step, its log-probs and guidance, against numbers by hand and torch's own."""

from __future__ import annotations

import pytest
import torch

from trl_step.algorithms.denoising import Denoised, ddim_distribution, denoising_logprobs, guided

ALPHA, NEXT = torch.tensor(0.36), torch.tensor(0.81)


def test_a_step_by_hand() -> None:
    """sqrt(alpha) = 0.6, sqrt(beta) = 0.8, latents 1, noise 0.5: clean = (1 - 0.4) / 0.6 = 1."""
    mean, deviation = ddim_distribution(torch.tensor([[0.5]]), torch.tensor([[1.0]]), ALPHA, NEXT, eta=1.0)
    variance = 0.19 / 0.64 * (1 - 0.36 / 0.81)
    assert float(deviation) == pytest.approx(variance**0.5)
    assert float(mean) == pytest.approx(0.9 * 1 + (0.19 - variance) ** 0.5 * 0.5)


def test_without_noise_the_step_is_the_mean() -> None:
    mean, deviation = ddim_distribution(torch.tensor([[0.5]]), torch.tensor([[1.0]]), ALPHA, NEXT, eta=0.0)
    assert float(deviation) == 0
    assert float(mean) == pytest.approx(0.9 + 0.19**0.5 * 0.5)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_all_kinds_of_predictions_of_one_state_give_one_step(kind: str) -> None:
    clean, noise = torch.randn(2, 3), torch.randn(2, 3)
    latents = 0.6 * clean + 0.8 * noise
    prediction = {"epsilon": noise, "sample": clean, "v_prediction": 0.6 * noise - 0.8 * clean}[kind]
    mean, deviation = ddim_distribution(prediction, latents, ALPHA, NEXT, 0.5, kind)
    torch.testing.assert_close(mean, 0.9 * clean + (0.19 - deviation**2) ** 0.5 * noise)


def test_clipped_clean_latents_by_hand() -> None:
    """clean = 1 is clipped to 0.5; noise from it is (1 - 0.3) / 0.8 = 0.875."""
    inputs = torch.tensor([[0.5]]), torch.tensor([[1.0]]), ALPHA, NEXT, 0.0
    assert float(ddim_distribution(*inputs, clip_range=0.5).mean) == pytest.approx(0.45 + 0.19**0.5 * 0.5)
    clipped = ddim_distribution(*inputs, clip_range=0.5, noise_from_clipped=True)
    assert float(clipped.mean) == pytest.approx(0.45 + 0.19**0.5 * 0.875)


def test_another_kind_of_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'flow' is unknown: use one of .*v_prediction"):
        ddim_distribution(torch.zeros(1, 1), torch.zeros(1, 1), ALPHA, NEXT, 1.0, "flow")


def test_log_probs_are_means_over_the_numbers_of_a_sample() -> None:
    latents, mean, deviation = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.tensor([0.1, 1.0, 2.0]).view(3, 1, 1)
    expected = torch.distributions.Normal(mean, deviation).log_prob(latents).mean(dim=(1, 2))
    torch.testing.assert_close(denoising_logprobs(latents, Denoised(mean, deviation)), expected)


def test_a_step_without_noise_has_log_prob_0_and_no_gradient() -> None:
    mean = torch.randn(2, 3, requires_grad=True)
    logprobs = denoising_logprobs(mean.detach() + 0.1, Denoised(mean, torch.tensor([[0.0], [1.0]])))
    logprobs.sum().backward()
    assert logprobs[0] == 0
    assert logprobs[1] != 0
    assert mean.grad is not None
    assert mean.grad[0].tolist() == [0.0] * 3
    assert (mean.grad[1] != 0).all()


def test_guidance_by_hand() -> None:
    without, with_prompt = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])
    assert guided(torch.cat([without, with_prompt]), 3.0).tolist() == [[4.0, -1.0]]
    assert guided(torch.cat([without, with_prompt]), 1.0).tolist() == with_prompt.tolist()
