"""Small output heads of every kind, and the plain formula."""

import torch

from trl_step.head.tiles import OutputHead

N, D, V = 37, 8, 23
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "all": {"bias": True, "scale": 0.5, "softcap": 2.0},
}


def make(kind, dtype=torch.float32):
    torch.manual_seed(0)
    options = dict(HEADS[kind])
    if options.pop("bias", False):
        options["bias"] = torch.randn(V, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    hidden = (0.3 * torch.randn(N, D, dtype=dtype)).requires_grad_()
    return hidden, torch.randint(V, (N,)), OutputHead(weight, **options)


def plain_logits(hidden, head):
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits
