"""The recorded group algorithms prove something: they fit their tables, and every setting shows in the numbers."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.parity.group_cases import GRPO_CASES, RLOO_CASES
from tests.parity.group_inputs import INPUTS
from tests.parity.group_recording import GroupCase, case_names, group_case, group_cases
from tests.parity.record_group import PINS

TABLES = {"rloo": RLOO_CASES, "grpo": GRPO_CASES}
CASES = [case for trainer in TABLES for case in group_cases(trainer)]
BY_NAME = {(case.trainer, case.name): case for case in CASES}
VISIBLE = 1e-3
"""Two cases differ by more than this share of the larger number; replays agree to a thousandth of it."""


def ids(case: GroupCase) -> str:
    return f"{case.trainer}-{case.name}"


def differ(one: GroupCase, other: GroupCase, output: str = "grad_logprobs") -> bool:
    """Whether an output [B, T] or [B] shows which of the two it is."""
    left, right = one.outputs[output], other.outputs[output]
    return float((left - right).abs().max()) > VISIBLE * float(torch.maximum(left.abs(), right.abs()).max())


@pytest.mark.parametrize("trainer", TABLES)
def test_recording_fits_the_table(trainer: str) -> None:
    table = TABLES[trainer]
    assert case_names(trainer) == list(table)
    for name, (drawn, settings) in table.items():
        case = BY_NAME[trainer, name]
        for key, array in INPUTS[drawn].items():
            assert torch.equal(case.inputs[key], torch.from_numpy(array)), f"{name}: {key} changed since the recording"
        unrecorded = {"tool_mask"}
        for key, value in settings.items():
            assert key in unrecorded or case.options[key] == value, f"{name}: {key} changed since the recording"


def test_pins_are_the_releases_that_were_recorded() -> None:
    assert {trainer: [pin for pin in pins if pin.startswith("trl==")] for trainer, pins in PINS.items()} == {
        "rloo": ["trl==0.15.2"],
        "grpo": ["trl==1.16.0"],
    }
    assert {case.versions["trl"] for case in CASES if case.trainer == "rloo"} == {"0.15.2"}
    assert {case.versions["trl"] for case in CASES if case.trainer == "grpo"} == {"1.16.0"}


def test_unknown_case_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="no case 'k3' of rloo; there are k2, "):
        group_case("rloo", "k3")


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_gradient_is_zero_where_masked_and_elsewhere_not(case: GroupCase) -> None:
    mask, gradient = case.outputs.get("mask", case.inputs["mask"]).bool(), case.outputs["grad_logprobs"]
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).float().mean() > 0.2


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_shapes_and_dtypes(case: GroupCase) -> None:
    rows, tokens = case.inputs["mask"].shape
    for name, tensor in {**case.inputs, **case.outputs}.items():
        whole = name in ("groups", "mask", "holes", "parts")
        assert tensor.dtype == (torch.int64 if whole else torch.float32), name
        assert tensor.numel() in (rows, rows * tokens), name
        assert tensor.dtype == torch.int64 or tensor.isfinite().all(), name
    assert case.outputs["advantages"].shape == (rows,)
    assert case.outputs["grad_logprobs"].shape == (rows, tokens)


@pytest.mark.parametrize("drawn", INPUTS)
def test_lengths_differ_and_masks_have_holes(drawn: str) -> None:
    mask, holes = (torch.from_numpy(INPUTS[drawn][name]) for name in ("mask", "holes"))
    assert mask.sum(1).min() == 1
    assert mask.bool().all(1).any()
    assert (holes <= mask).all()
    assert (holes != mask).any()
    assert (holes.diff(dim=1) > 0).any(), "no zero between ones"


@pytest.mark.parametrize("drawn", ["pairs", "fours"])
def test_ratios_lie_on_both_sides_of_every_clip(drawn: str) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in INPUTS[drawn].items()}
    counted = arrays["mask"].bool()
    ratio = (arrays["logprobs"] - arrays["old_logprobs"]).exp()[counted]
    assert (ratio > 1.4).any()
    assert ((ratio > 1.2) & (ratio < 1.28)).any()
    assert (ratio < 0.8).any()
    weight = (arrays["old_logprobs"] - arrays["sampling_logprobs"]).exp()[counted]
    assert (weight > 1.5).any()
    assert (weight < 0.6).any()
    edges = torch.tensor([0.8, 1.2, 1.28, 1.4])
    assert (ratio[:, None] - edges).abs().min() > 1e-4, "a ratio on an edge is decided by rounding"


@pytest.mark.parametrize("drawn", ["rounds-of-2", "rounds-of-4"])
def test_ratios_of_whole_samples_lie_on_both_sides_of_the_clip(drawn: str) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in INPUTS[drawn].items()}
    ratio = ((arrays["logprobs"] - arrays["old_logprobs"]) * arrays["mask"]).sum(1).exp()
    assert (ratio > 1.6).any()
    assert (ratio < 0.8).any()
    assert ((ratio > 0.8) & (ratio < 1.2)).any()
    assert (ratio[:, None] - torch.tensor([0.4, 0.8, 1.2, 1.6])).abs().min() > 1e-4


@pytest.mark.parametrize(
    "names", list(itertools.combinations(["grpo", "dapo", "dr_grpo", "cispo-1.2", "gspo", "sapo"], 2)), ids="-".join
)
def test_loss_types_differ(names: tuple[str, str]) -> None:
    one, other = (BY_NAME["grpo", name] for name in names)
    assert differ(one, other)
    assert abs(one.loss - other.loss) > VISIBLE * max(abs(one.loss), abs(other.loss))


BASES = {
    **{
        f"{loss}-{change}": loss
        for loss in ("grpo", "dapo", "dr_grpo", "bnpo")
        for change in ("epsilon-high", "beta", "on-policy", "tool-mask", "truncated")
    },
    "grpo-delta": "grpo",
    "grpo-beta-corrected": "grpo-beta",
    "dapo-beta-corrected": "dapo-beta",
    "cispo-0.28": "cispo",
    "cispo-1.2": "cispo-0.28",
    "cispo-5": "cispo-1.2",
    "cispo-beta": "cispo-1.2",
    "cispo-tool-mask": "cispo-1.2",
    "gspo-beta": "gspo",
    "scale-batch-pairs": "scale-group-pairs",
    "scale-none-pairs": "scale-batch-pairs",
    "scale-batch-fours": "scale-group-fours",
    "scale-none-fours": "scale-batch-fours",
    "grpo-token_truncate": "grpo",
    "grpo-token_mask": "grpo-token_truncate",
    "grpo-sequence_truncate": "grpo",
    "grpo-sequence_mask": "grpo-sequence_truncate",
    "grpo-sequence_mask-both": "grpo-sequence_mask",
    "dapo-token_truncate-beta": "dapo-beta",
    "dapo-token_mask-beta": "dapo-token_truncate-beta",
    "dapo-sequence_truncate-beta": "dapo-beta",
    "dapo-sequence_mask-beta": "dapo-sequence_truncate-beta",
    "cispo-token_truncate": "cispo-1.2",
    "dapo-token_truncate-both": "dapo",
    "dapo-token_mask-tool-mask": "dapo-tool-mask",
}


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_setting_shows(name: str, base: str) -> None:
    assert differ(BY_NAME["grpo", name], BY_NAME["grpo", base])


def test_every_case_is_compared_with_another() -> None:
    seen = {*BASES, *BASES.values(), "sapo", "grpo-entropy", "dapo-entropy"}
    accumulated = {f"{loss}-accumulation" for loss in ("grpo", "dapo", "dr_grpo", "bnpo", "cispo")}
    assert set(GRPO_CASES) - seen == {*accumulated, "dapo-two-updates"}


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "bnpo", "cispo"])
def test_accumulation_has_parts_of_different_lengths(loss: str) -> None:
    case = BY_NAME["grpo", f"{loss}-accumulation"]
    parts = case.outputs["parts"]
    assert parts.shape == (4, 4)
    assert parts.flatten().unique().numel() == 16
    assert case.inputs["mask"].sum(1)[parts].sum(1).unique().numel() > 1


def test_entropy_bonus_moves_the_loss_alone() -> None:
    for loss in ("grpo", "dapo"):
        with_bonus, without = BY_NAME["grpo", f"{loss}-entropy"], BY_NAME["grpo", loss]
        assert abs(with_bonus.loss - without.loss) > 1e-2
        assert not differ(with_bonus, without)
        assert "grad_entropies" in with_bonus.outputs
        assert "grad_entropies" not in without.outputs


@pytest.mark.parametrize(
    ("name", "base", "equal"),
    [
        ("k2-token-level-kl", "k2", True),
        ("k2-reward-clip-range-alone", "k2", True),
        ("k2-kl-coef", "k2", False),
        ("k2-no-kl", "k2", False),
        ("k2-cliprange", "k2", False),
        ("k2-normalize-reward", "k2", False),
        ("k2-reward-clip-range", "k2-normalize-reward", False),
        ("k2-normalize-advantage", "k2", False),
        ("k4-token-level-kl", "k4", False),
        ("k4-normalize-reward", "k4", False),
        ("k4-normalize-advantage", "k4", False),
    ],
)
def test_rloo_setting_shows_or_acts_on_nothing(name: str, base: str, equal: bool) -> None:
    assert differ(BY_NAME["rloo", name], BY_NAME["rloo", base]) is not equal
    if name != "k2-cliprange":
        assert differ(BY_NAME["rloo", name], BY_NAME["rloo", base], "advantages") is not equal


def test_layouts_of_groups() -> None:
    assert BY_NAME["rloo", "k2"].inputs["groups"].tolist() == [0, 1, 2, 3] * 2
    assert BY_NAME["grpo", "grpo"].inputs["groups"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    case = BY_NAME["grpo", "scale-none-fours"]
    for group in range(4):
        of_group = case.inputs["groups"] == group
        assert case.outputs["advantages"][of_group].sum().abs() < 1e-5
    assert case.outputs["advantages"].sum().abs() < 1e-5
    assert (case.outputs["advantages"][case.inputs["groups"] == 3] == 0).all()  # equal scores
