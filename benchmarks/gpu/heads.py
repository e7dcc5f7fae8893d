"""The output embedding's log-probs, entropies, divergences and gradients against full logits in float64."""

from __future__ import annotations

from typing import Any

import torch
from records import Section, distance

from trl_step.head.logprobs import exact_divergence, token_logprobs
from trl_step.head.policy_gradient import policy_gradient_rows
from trl_step.head.tiles import OutputHead

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "soft cap": {"softcap": 15.0},
    "all": {"bias": True, "softcap": 15.0, "scale": 0.5},
}
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Of a gradient, relative to its norm."""
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Of a log-prob, an entropy or a divergence, in nats."""


def full_logits(hidden: torch.Tensor, head: OutputHead) -> torch.Tensor:
    """[N, V], by the definition."""
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


def draw(
    device: str, dtype: torch.dtype, rows: int, width: int, vocabulary: int, kind: str
) -> tuple[torch.Tensor, torch.Tensor, OutputHead]:
    """Hidden states, labels and a head whose logits have a spread of about 3."""
    stream = torch.Generator(device).manual_seed(0)
    options = dict(KINDS[kind])
    if options.pop("bias", False):
        options["bias"] = torch.randn(vocabulary, generator=stream, device=device).to(dtype).requires_grad_()
    hidden = torch.randn(rows, width, generator=stream, device=device).to(dtype).requires_grad_()
    weight = (3 / width**0.5) * torch.randn(vocabulary, width, generator=stream, device=device)
    labels = torch.randint(vocabulary, (rows,), generator=stream, device=device)
    return hidden, labels, OutputHead(weight.to(dtype).requires_grad_(), **options)


def check_heads(section: Section) -> None:
    """Every kind of head in float32 and bf16, at a vocabulary of 128,256."""
    rows, width, vocabulary = (48, 32, 999) if section.tiny else (512, 1024, 128_256)
    for dtype in TOLERANCES:
        for kind in ("all",) if section.tiny else KINDS:
            name = f"head, {kind}, {str(dtype).removeprefix('torch.')}"
            with section.attempt(name):
                check_head(section, name, *draw(section.device, dtype, rows, width, vocabulary, kind))


def check_head(section: Section, name: str, hidden: torch.Tensor, labels: torch.Tensor, head: OutputHead) -> None:
    """Log-probs, entropies and gradients of a loss of both, and the divergence from another model."""
    dtype = hidden.dtype
    stream = torch.Generator(hidden.device).manual_seed(1)
    slopes = torch.randn(2, len(labels), generator=stream, device=hidden.device)
    exact = [None if each is None else each.detach().double().requires_grad_()
             for each in (hidden, head.weight, head.bias)]  # fmt: skip
    log_p = torch.log_softmax(full_logits(exact[0], head._replace(weight=exact[1], bias=exact[2])), dim=-1)
    expected = log_p.gather(1, labels[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)

    other = hidden.detach() + 0.3 * torch.randn(hidden.shape, generator=stream, device=hidden.device).to(dtype)
    with torch.no_grad():
        log_q = torch.log_softmax(full_logits(other.double(), head._replace(weight=exact[1], bias=exact[2])), dim=-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        del log_q
        ours = exact_divergence(hidden, other, labels, head, head).divergence
        section.check(f"{name}: full KL", worst(ours, divergence), CLOSE[dtype], "nats")
        ours = token_logprobs(hidden, labels, head)
        section.check(f"{name}: log-probs", worst(ours, expected[0]), CLOSE[dtype], "nats")

    for with_entropy in (False, True):
        leaves = [each for each in exact if each is not None]
        loss = (slopes[0] * expected[0]).sum() + (slopes[1] * expected[1]).sum() * with_entropy
        gradients = torch.autograd.grad(loss, leaves, retain_graph=not with_entropy)
        found = policy_gradient_rows(
            hidden, labels, head, lambda rows, _: slopes[0, rows], entropy_gradient=slopes[1] if with_entropy else None
        )
        ours = torch.autograd.grad(
            found.anchor, [each for each in (hidden, head.weight, head.bias) if each is not None]
        )
        error = max(distance({"": a}, {"": b}) for a, b in zip(ours, gradients, strict=True))
        what = "log-probs and entropies" if with_entropy else "log-probs"
        section.check(f"{name}: gradients of a loss of {what}", error, TOLERANCES[dtype])
        section.check(f"{name}: entropies beside {what}", worst(found.entropy, expected[1]), CLOSE[dtype], "nats")


def worst(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.double() - expected).abs().max())
