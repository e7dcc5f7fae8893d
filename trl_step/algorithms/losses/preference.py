"""The losses of direct preference optimization, as functions of log-probs. Shapes: B pairs, T tokens, V vocabulary."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F

LossType = Literal["sigmoid", "hinge", "ipo", "kto_pair"]
LOSS_TYPES: tuple[str, ...] = get_args(LossType)


class Logps(NamedTuple):
    """Log-probs of the chosen and of the rejected answers, each [B]."""

    chosen: torch.Tensor
    rejected: torch.Tensor


def preference_losses(
    policy: Logps,
    reference: Logps,
    loss_type: str,
    beta: float,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> torch.Tensor:
    """One loss per pair [B]; two per pair, chosen ones first [2B], for "kto_pair".

    With d = (policy.chosen - policy.rejected) - (reference.chosen - reference.rejected):

    - "sigmoid": -log sigmoid(beta d), Rafailov et al. 2023, eq. 7; with smoothing e: (1-e) of it and e of that of -d.
    - "hinge": max(0, 1 - beta d), Zhao et al. 2023 (SLiC).
    - "ipo": (d - 1 / (2 beta))^2, Azar et al. 2023, eq. 17; its log-probs are means per token.
    - "kto_pair": 1 - sigmoid of each answer's beta log-ratio against the other side's mean one, at least 0
      (Ethayarajh et al. 2024, eq. 7, on pairs).

    Args:
        policy: with a gradient.
        reference: without one; "kto_pair" uses it even if `reference_free`.
        loss_type: one of the four.
        beta: strength of the pull to the reference.
        label_smoothing: share of labels taken to be wrong, from 0 to 0.5; "sigmoid" alone uses it.
        reference_free: take the reference to find both answers equally likely.

    Raises:
        ValueError: the type is unknown.
    """
    difference = policy.chosen - policy.rejected
    if not reference_free:
        difference = difference - (reference.chosen - reference.rejected)
    if loss_type == "sigmoid":
        right, wrong = F.logsigmoid(beta * difference), F.logsigmoid(-beta * difference)
        return -right * (1 - label_smoothing) - wrong * label_smoothing
    if loss_type == "hinge":
        return torch.relu(1 - beta * difference)
    if loss_type == "ipo":
        return (difference - 1 / (2 * beta)) ** 2
    if loss_type == "kto_pair":
        chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        chosen_kl, rejected_kl = chosen.mean().clamp(min=0), rejected.mean().clamp(min=0)
        gains = torch.cat((chosen - rejected_kl, chosen_kl - rejected))
        return 1 - torch.sigmoid(beta * gains)
    raise ValueError(f"loss_type {loss_type!r} is unknown: use one of {', '.join(LOSS_TYPES)}")


def sequence_logps(
    logits: torch.Tensor, labels: torch.Tensor, average: bool, ignored: int, is_encoder_decoder: bool
) -> torch.Tensor:
    """Log-prob of each row's labels, [B], at least float32.

    Args:
        logits: [B, T, V].
        labels: int64 [B, T]; those of a decoder alone are predicted one position earlier.
        average: the mean over the counted labels in place of their sum.
        ignored: the label that does not count.
        is_encoder_decoder: logits and labels stand at the same position.

    Raises:
        ValueError: the shapes do not fit.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must agree in rows and tokens")
    if not is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    # differs from v0.7: there the log-probs of 16-bit logits were formed and summed in 16 bits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    per_token = -F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=ignored, reduction="none")
    total = per_token.sum(dim=-1)
    return total / (labels != ignored).sum(dim=-1) if average else total
