"""Release 0.7.11's numbers from `trl_step`: every recorded case, three steps, `PPOConfig(exact_v07=True)`.

The recorded weights, queries, responses, scores and masks go into today's models and trainer; every scalar of the
stats (but the times) and every trained weight must come out, to rtol 1e-3 and atol 1e-5 in float32.
"""

from __future__ import annotations

import pytest
import torch

import trl_step
from tests.parity.cases import CASES, SHAPES
from tests.parity.recording import differences, load_inputs, load_recording, load_weights
from tests.parity.runner import Library, run_case

LIBRARY = Library(trl_step, config={"exact_v07": True})


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in the recording's order; threads cost more than they bring at this size anyway."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(CASES))
def test_replay(name: str) -> None:
    case = CASES[name]
    weights = SHAPES[case.shape].weights
    policy = load_weights(weights, "policy")
    steps = run_case(LIBRARY, case, load_inputs(case.inputs), policy, load_weights(weights, "reference"))
    found = differences(name, steps, load_recording(name).steps, policy)
    assert not found, f"{len(found)} numbers differ:\n" + "\n".join(found[:40])
