from __future__ import annotations

import math

import pytest
import torch

from trl_step.algorithms.losses.preference import Logps, preference_losses, sequence_logps

POLICY = Logps(torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -2.0]))
REFERENCE = Logps(torch.tensor([-2.0, -3.0]), torch.tensor([-2.5, -2.5]))
# differences of policy: 2, -2; of the reference: 0.5, -0.5; so d = 1.5, -1.5


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("loss_type", "options", "expected"),
    [
        ("sigmoid", {}, [-math.log(sigmoid(0.75)), -math.log(sigmoid(-0.75))]),
        ("sigmoid", {"reference_free": True}, [-math.log(sigmoid(1.0)), -math.log(sigmoid(-1.0))]),
        (
            "sigmoid",
            {"label_smoothing": 0.25},
            [
                -0.75 * math.log(sigmoid(0.75)) - 0.25 * math.log(sigmoid(-0.75)),
                -0.75 * math.log(sigmoid(-0.75)) - 0.25 * math.log(sigmoid(0.75)),
            ],
        ),
        ("hinge", {}, [1 - 0.75, 1 + 0.75]),
        ("ipo", {}, [0.25, 6.25]),
        # log-ratios: chosen 1, -1 (mean 0), rejected -0.5, 0.5 (mean 0)
        ("kto_pair", {}, [1 - sigmoid(0.5), 1 - sigmoid(-0.5), 1 - sigmoid(0.25), 1 - sigmoid(-0.25)]),
    ],
)
def test_by_hand(loss_type: str, options: dict, expected: list[float]) -> None:
    torch.testing.assert_close(
        preference_losses(POLICY, REFERENCE, loss_type, beta=0.5, **options), torch.tensor(expected)
    )


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(ValueError, match="'dpo' is unknown: use one of sigmoid, hinge, ipo, kto_pair"):
        preference_losses(POLICY, REFERENCE, "dpo", 0.1)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("encoder", [False, True])
def test_log_probs_of_rows_against_a_loop(average: bool, encoder: bool) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5), torch.tensor([[3, -100, 2, 4], [-100, -100, 1, 0]])
    expected = []
    for row in range(2):
        terms = []
        for position in range(4) if encoder else range(1, 4):
            if (label := int(labels[row, position])) != -100:
                terms.append(logits[row, position if encoder else position - 1].log_softmax(-1)[label])
        expected.append(sum(terms) / (len(terms) if average else 1))
    torch.testing.assert_close(sequence_logps(logits, labels, average, -100, encoder), torch.stack(expected))
    with pytest.raises(ValueError, match=r"\(2, 4, 5\) and labels \(2, 3\)"):
        sequence_logps(logits, labels[:, 1:], average, -100, encoder)
