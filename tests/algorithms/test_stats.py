import pytest
import torch

from trl_step.algorithms.stats import STATS, join_minibatch_statistics, mean_and_std, rollout_statistics
from trl_step.core import keep, masked_mean, masked_var


def test_keys_are_unique():
    assert len({stat.key for stat in STATS}) == len(STATS)


def test_two_processes_joined_are_one():
    torch.manual_seed(0)
    values = [torch.randn(5), torch.randn(2) + 3]
    stacked = [
        {
            "returns/mean": v.mean().view(1, 1),
            "returns/var": v.var().view(1, 1),
            "loss/policy": (2 * v).mean().view(1, 1),
        }
        for v in values
    ]
    shares = []
    for stats, v in zip(stacked, values, strict=True):  # what each process would hand to the reduction
        join_minibatch_statistics(stats, torch.tensor([float(len(v))]), lambda t: shares.append(t) or t)
    joined = join_minibatch_statistics(stacked[0], torch.tensor([5.0]), lambda t: shares[0] + shares[1])
    everything = torch.cat(values)
    assert joined["returns/mean"].item() == pytest.approx(everything.mean().item(), rel=1e-6)
    assert joined["returns/var"].item() == pytest.approx(everything.var().item(), rel=1e-6)
    assert joined["loss/policy"].item() == pytest.approx(2 * everything.mean().item(), rel=1e-6)


def test_a_single_process_is_left_as_it_was():
    stats = {"returns/mean": torch.tensor([[1.5], [2.0]]), "returns/var": torch.tensor([[0.3], [0.0]])}
    joined = join_minibatch_statistics(stats, torch.tensor([4.0, 1.0]), keep)
    torch.testing.assert_close(joined["returns/mean"], stats["returns/mean"])
    torch.testing.assert_close(joined["returns/var"], stats["returns/var"])


def test_mean_and_std_of_one_number():
    assert [float(x) for x in mean_and_std(torch.tensor([2.0]))] == [2.0, 0.0]


def test_rollout_statistics_by_hand():
    masks = torch.tensor([[0, 1, 1], [0, 1, 0]])
    logprobs = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -3.0, -9.0]])
    kls = torch.tensor([[9.0, 0.5, 0.25], [9.0, -0.25, 9.0]])
    stats = rollout_statistics(
        scores=torch.tensor([1.0, 3.0]),
        logprobs=logprobs,
        ref_logprobs=logprobs,
        non_score_reward=-0.2 * kls,
        kls=kls,
        masks=masks,
        queries=[torch.zeros(2), torch.zeros(2)],
        responses=[torch.tensor([5, 7]), torch.tensor([4])],
        kl_coef=0.2,
        end_tokens=(4, 7),
    )
    assert stats["objective/kl_dist"].tolist() == [0.75, -0.25]
    assert float(stats["objective/kl"]) == pytest.approx(0.25)
    assert float(stats["objective/entropy"]) == pytest.approx(3.0)
    assert float(stats["objective/token_surprise"]) == pytest.approx(2.0)
    assert float(stats["tokens/responses_ended"]) == 1.0
    assert float(stats["ppo/mean_non_score_reward"]) == pytest.approx(-0.2 * 0.5 / 3)
    assert float(stats["ppo/mean_scores"]) == 2.0
    assert float(stats["ppo/std_scores"]) == pytest.approx(2**0.5)
    assert float(stats["tokens/queries_len_std"]) == 0.0
    assert float(stats["tokens/responses_len_mean"]) == 1.5
    assert stats["tokens/responses_dist"].tolist() == [2.0, 1.0]


def test_masked_helpers_by_hand():
    values, mask = torch.tensor([[1.0, 5.0], [3.0, 7.0]]), torch.tensor([[1, 0], [1, 1]])
    assert float(masked_mean(values, mask)) == pytest.approx(11 / 3)
    assert float(masked_var(values, mask)) == pytest.approx(28 / 3)
    assert masked_mean(values, mask, axis=1).tolist() == [1.0, 5.0]
