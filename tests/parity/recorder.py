"""The part of `record.py` that runs beside release 0.7.11. Not started by hand."""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import time
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from accelerate.state import AcceleratorState, GradientState

from tests.parity.cases import (
    BATCH_SIZE,
    CASES,
    EOS_ID,
    PAD_ID,
    SHAPES,
    STEPS,
    UNKNOWN_ID,
    VOCABULARY_SIZE,
    Case,
    description,
)
from tests.parity.record_functions import record_functions
from tests.parity.record_trainers import record_trainers
from tests.parity.recording import (
    DATA,
    Recording,
    StepInputs,
    StepResult,
    comparisons,
    differences,
    load_inputs,
    load_recording,
    load_weights,
    pack_moves,
)
from tests.parity.runner import Library, build_model, is_learned_buffer, run_case

# A case in which one rounding error of the initial weights uses up this share of the tolerance tests luck.
LARGEST_SENSITIVITY = 0.2

Arrays = Mapping[str, np.ndarray]

OF_OTHERS = ("ddpo", "group_", "on_policy_")
"""What the files of the other recorders begin with."""


def main() -> None:
    """Record, or check, the cases named on the command line (all without a name)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", action="append", default=[])
    parser.add_argument("--trainers", action="store_true")
    parser.add_argument("--self-check", action="store_true")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.case if name not in CASES]
    if unknown:
        raise SystemExit(f"unknown cases {unknown}; there are {', '.join(CASES)}")
    if trl.__version__ != "0.7.11":
        raise SystemExit(f"the recording is of release 0.7.11, this environment holds {trl.__version__}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    if arguments.trainers:
        record_trainers(_write_npz)
        return

    cases = [CASES[name] for name in arguments.case or CASES]
    if arguments.self_check:
        sys.exit(self_check(cases))
    if not arguments.case:
        for stale in DATA.glob("*"):
            if not stale.name.startswith(OF_OTHERS):
                stale.unlink()
        DATA.mkdir(exist_ok=True)
        _write_json("inputs.json", {name: [asdict(step) for step in steps] for name, steps in make_inputs().items()})
        record_weights()
        record_functions(_write_npz, _write_json)
        record_trainers(_write_npz)
    record_cases(cases, fresh=not arguments.case)


# ---------------------------------------------------------------------------------------------------------------------
# cases


class Counter:
    """Counts the mini-batches of each step and those that were skipped; `max_grad_norm` gets a list to clip."""

    def __init__(self) -> None:
        self.minibatches: list[int] = []
        self.skipped: list[int] = []

    def attach(self, trainer: Any) -> None:
        """Count from here on. The release's parameter iterator is used up by the first clipping: a list is not."""
        trainer.model_params = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        step, train_minibatch = trainer.step, trainer.train_minibatch

        def counted_step(*args: Any, **kwargs: Any) -> Any:
            self.minibatches.append(0)
            self.skipped.append(0)
            return step(*args, **kwargs)

        def counted_minibatch(*args: Any, **kwargs: Any) -> Any:
            stats = train_minibatch(*args, **kwargs)
            self.minibatches[-1] += 1
            self.skipped[-1] += int(stats["loss/total"].item() == 0 and stats["loss/value"].item() == 0)
            return stats

        trainer.step, trainer.train_minibatch = counted_step, counted_minibatch


def run_reference(case: Case, policy: Arrays, reference: Arrays) -> tuple[list[StepResult], Counter]:
    """One case on the reference release, untouched by what ran before it in this process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    counter = Counter()
    library = Library(trl, prepare=counter.attach)
    return run_case(library, case, load_inputs(case.inputs), policy, reference), counter


def record_cases(cases: list[Case], fresh: bool) -> None:
    """Run the cases and write what came out."""
    index = {} if fresh else json.loads((DATA / "recording.json").read_text())
    luck = []
    for case in cases:
        started = time.perf_counter()
        weights = SHAPES[case.shape].weights
        policy, reference = load_weights(weights, "policy"), load_weights(weights, "reference")
        steps, counter = run_reference(case, policy, reference)
        shaken, _ = run_reference(case, _rounding_error(policy, 1), _rounding_error(reference, 2))
        sensitivity = max(
            beyond for pair in zip(shaken, steps, strict=True) for _, beyond, *_ in comparisons(*pair, policy)
        )
        _refuse_non_finite(case, steps)
        recording = Recording(description(case), steps, counter.minibatches, counter.skipped, sensitivity)
        index[case.name] = _write_case(case.name, recording, weights, policy)
        print(
            f"{case.name:36s} {time.perf_counter() - started:5.1f} s  mini-batches {counter.minibatches} "
            f"skipped {counter.skipped}  moved {_largest_move(steps, policy):.1e}  sensitivity {sensitivity:.3f}"
        )
        if sensitivity > LARGEST_SENSITIVITY:
            for line in _most_sensitive(shaken, steps, policy):
                print("    " + line)
            luck.append(case.name)
    _write_json("recording.json", {name: index[name] for name in CASES if name in index})
    if luck:
        raise SystemExit(f"{luck}: a rounding error comes too near to the tolerance; choose another seed or value")


def _write_case(name: str, recording: Recording, weights: str, policy: Arrays) -> dict[str, Any]:
    trained = [name for name in policy if name in recording.steps[0].weights]
    vectors = [_flat({name: step.weights[name] for name in trained}) for step in recording.steps]
    packed = pack_moves(_flat({name: policy[name] for name in trained}), np.stack(vectors))
    _write_npz(f"{name}.npz", {"moves": packed})
    return {
        "case": recording.case,
        "weights": weights,
        "frozen": [name for name in policy if name not in trained],
        "minibatches": recording.minibatches,
        "skipped": recording.skipped,
        "sensitivity": round(recording.sensitivity, 4),
        "steps": [{"scalars": {key: _short(value) for key, value in step.scalars.items()}} for step in recording.steps],
    }


def _refuse_non_finite(case: Case, steps: list[StepResult]) -> None:
    broken = [key for step in steps for key, value in step.scalars.items() if not np.isfinite(value)]
    if broken:
        raise SystemExit(f"{case.name}: release 0.7.11 gives no finite {', '.join(sorted(set(broken)))}")


def _short(number: float) -> float:
    """The number to nine digits, which is all that a float32 holds."""
    return float(f"{number:.9g}")


def _rounding_error(weights: Arrays, seed: int) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    return {
        name: (array * (1 + random.uniform(-1, 1, array.shape) * 2.0**-23)).astype(np.float32)
        for name, array in weights.items()
    }


def _largest_move(steps: list[StepResult], initial: Arrays) -> float:
    return max(float(np.abs(array - initial[name]).max()) for name, array in steps[-1].weights.items())


def _most_sensitive(shaken: list[StepResult], steps: list[StepResult], initial: Arrays) -> list[str]:
    found = [
        (beyond, f"step {number + 1} {key}: {recorded} {other}")
        for number, pair in enumerate(zip(shaken, steps, strict=True))
        for key, beyond, recorded, other in comparisons(*pair, initial)
    ]
    return [f"{beyond:.3f} {line}" for beyond, line in sorted(found, reverse=True)[:8]]


def self_check(cases: list[Case]) -> int:
    """Replay the recorded data on the reference release; returns the number of cases that differ."""
    failed = 0
    for case in cases:
        weights = SHAPES[case.shape].weights
        policy = load_weights(weights, "policy")
        steps, _ = run_reference(case, policy, load_weights(weights, "reference"))
        lines = differences(case.name, steps, load_recording(case.name).steps, policy)
        print("\n".join(lines) if lines else f"{case.name}: as recorded")
        failed += bool(lines)
    return failed


# ---------------------------------------------------------------------------------------------------------------------
# initial weights


def record_weights() -> None:
    """Draw and write the initial weights of policy and reference of every shape."""
    layouts = {}
    for name, shape in SHAPES.items():
        if shape.weights != name:
            continue
        policy = draw_weights(build_model(Library(trl), shape), seed=shape.seed)
        reference = _perturb(policy, seed=1000 + shape.seed)
        layouts[name] = {parameter: list(array.shape) for parameter, array in policy.items()}
        vectors = {role: _flat(arrays) for role, arrays in (("policy", policy), ("reference", reference))}
        _write_npz(f"weights-{name}.npz", vectors)
    _write_json("weights.json", layouts)


def draw_weights(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Weights with which every part of the model shows in its output: no bias is 0, no layer norm 1, no LoRA B 0."""
    random = np.random.RandomState(seed)
    named = dict(model.named_parameters())
    named.update({name: buffer for name, buffer in model.named_buffers() if is_learned_buffer(name)})
    drawn = {}
    for name, tensor in named.items():
        noise = random.standard_normal(tuple(tensor.shape))
        is_norm_scale = tensor.dim() == 1 and name.endswith("weight")
        # T5 does not divide its attention scores by the square root of the head's width
        scale = 0.1 if tensor.dim() == 1 or name.endswith((".q.weight", ".q.base_layer.weight")) else 0.25
        drawn[name] = (is_norm_scale + scale * noise).astype(np.float32)
    return drawn


def _perturb(weights: Arrays, seed: int) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    return {
        name: (array + 0.05 * random.standard_normal(array.shape)).astype(np.float32) for name, array in weights.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# inputs


def make_inputs() -> dict[str, list[StepInputs]]:
    """Ragged queries and responses of random tokens, with scores, and their variants."""
    causal = _ragged(seed=1, shortest_response=1, start=[])
    t5 = _ragged(seed=2, shortest_response=3, start=[PAD_ID])
    return {
        "causal": causal,
        "causal-two-tokens": _ragged(seed=6, shortest_response=2, start=[]),
        "causal-special": [_with_special_tokens(step, seed) for seed, step in enumerate(causal)],
        "causal-masks": [_with_masks(step, seed, first=0, last=0) for seed, step in enumerate(causal)],
        "t5": t5,
        # the release looks at mask[t] where it trains token t + 1, and neither at the first nor at the last entry
        "t5-equal-lengths": _ragged(seed=4, shortest_response=8, start=[PAD_ID]),
        "bart-equal-lengths": _ragged(seed=5, shortest_response=8, start=[EOS_ID]),
        "t5-masks": [_with_masks(step, seed, first=1, last=1) for seed, step in enumerate(t5)],
        "bart": _ragged(seed=3, shortest_response=3, start=[EOS_ID]),
    }


def _ragged(seed: int, shortest_response: int, start: list[int]) -> list[StepInputs]:
    """Three batches; queries of 1 to 8 tokens, responses of `shortest_response` to 8 that begin with `start`."""
    random = np.random.RandomState(seed)

    def tokens(shortest: int) -> list[list[int]]:
        lengths = random.randint(shortest, 9, BATCH_SIZE)
        lengths[:2] = shortest, 8
        lengths = random.permutation(lengths)
        return [random.randint(UNKNOWN_ID + 1, VOCABULARY_SIZE, length).tolist() for length in lengths]

    steps = []
    for _ in range(STEPS):
        queries, responses = tokens(1), tokens(shortest_response)
        responses = [start + ids[len(start) :] for ids in responses]
        scores = np.round(random.normal(0.5, 1.5, BATCH_SIZE), 3).tolist()
        steps.append(StepInputs(queries, responses, scores))
    return steps


def _with_special_tokens(step: StepInputs, seed: int) -> StepInputs:
    """Padding and end tokens at the start, within and at the end of queries and responses: ordinary tokens all."""
    random = np.random.RandomState(1000 + seed)

    def sprinkle(samples: list[list[int]]) -> list[list[int]]:
        return [[int(random.choice([PAD_ID, EOS_ID])) if random.rand() < 0.3 else i for i in ids] for ids in samples]

    queries, responses = sprinkle(step.queries), sprinkle(step.responses)
    for ids in queries[::2]:
        ids[0] = PAD_ID
    for ids in responses:
        ids[-1] = EOS_ID
    return StepInputs(queries, responses, step.scores)


def _with_masks(step: StepInputs, seed: int, first: int, last: int) -> StepInputs:
    """A random mask per response, with at least one 1 between the first `first` and the last `last` entries."""
    random = np.random.RandomState(2000 + seed)
    masks = []
    for ids in step.responses:
        mask = (random.rand(len(ids)) < 0.6).astype(int)
        mask[random.randint(first, len(ids) - last)] = 1
        masks.append(mask.tolist())
    return StepInputs(step.queries, step.responses, step.scores, masks)


# ---------------------------------------------------------------------------------------------------------------------
# files


def _flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()])


def _write_npz(name: str, arrays: Arrays) -> None:
    """A compressed npz whose bytes depend on the numbers alone (NumPy's own writer stores the time of day)."""
    with zipfile.ZipFile(DATA / name, "w") as archive:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            entry = zipfile.ZipInfo(f"{key}.npy")
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def _write_json(name: str, content: Any) -> None:
    Path(DATA / name).write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
