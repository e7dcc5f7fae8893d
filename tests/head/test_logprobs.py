import pytest
import torch

from tests.head.heads import HEADS, D, N, V, make, plain_logits
from trl_step.head.logprobs import exact_divergence
from trl_step.head.tiles import OutputHead

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", HEADS)
def test_exact_divergence_against_the_definition(kind, temperature):
    hidden, labels, head = make(kind)
    ref_hidden, ref_head = torch.randn(N, D), OutputHead(torch.randn(V, D))
    ours, theirs = (
        torch.log_softmax(logits / temperature, dim=-1).detach()
        for logits in (plain_logits(hidden, head), ref_hidden @ ref_head.weight.T)
    )
    result = exact_divergence(hidden, ref_hidden, labels, head, ref_head, temperature)
    torch.testing.assert_close(result.divergence, (ours.exp() * (ours - theirs)).sum(-1))
    torch.testing.assert_close(result.logprobs, ours[torch.arange(N), labels])
    torch.testing.assert_close(result.ref_logprobs, theirs[torch.arange(N), labels])
    torch.testing.assert_close(head.logits(hidden), plain_logits(hidden, head))
