"""The StackLLaMA pipeline in a short form, and the parts that it stands on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.examples.scripts import STACK_LLAMA, around_llama

MODULES = (
    "posts", "assets", "common", "supervised_finetuning", "reward_modeling", "merge_peft_adapter", "rl_training",
    "pipeline",
)  # fmt: skip


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    """The example's files as modules; their assets are tiny ones."""
    with around_llama(("stack_llama",), MODULES, tmp_path_factory.mktemp("llama")) as modules:
        yield modules


@pytest.mark.slow
def test_the_whole_way_in_a_few_steps(example: dict[str, ModuleType], tmp_path: Path) -> None:
    """Slow: three trainings, three merges, and ten models read or written."""
    outcome = example["pipeline"].main([f"--output_dir={tmp_path}", *STACK_LLAMA])
    assert 0 <= outcome.accuracy <= 1
    assert str(outcome.folder) in str(outcome)
    model = AutoModelForCausalLM.from_pretrained(outcome.folder)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "sft-merged")
    assert set(model.state_dict()) == set(tuned.state_dict())
    changed = [name for name, tensor in model.state_dict().items() if not tensor.equal(tuned.state_dict()[name])]
    assert any("q_proj" in name for name in changed)
    assert not [name for name in changed if "norm" in name or "embed" in name]
    assert AutoTokenizer.from_pretrained(outcome.folder).pad_token == "<pad>"


def test_defaults_of_both_sizes_and_flags_that_win(example: dict[str, ModuleType]) -> None:
    small = example["supervised_finetuning"].read_flags(["--learning_rate", "0.5", "--bf16"])
    assert (small.max_steps, small.learning_rate, small.bf16, small.load_in_8bit) == (250, 0.5, True, False)
    defaults = example["supervised_finetuning"].DEFAULTS
    classic = {name: values[0] for name, values in defaults.items()}
    assert (classic["max_steps"], classic["seq_length"], classic["learning_rate"]) == (10000, 1024, 1e-4)
    reward = example["reward_modeling"].read_flags(["--bf16", "False", "--eval_first_step"])
    assert (reward.bf16, reward.eval_first_step, reward.per_device_train_batch_size) == (False, True, 16)


def test_votes_are_the_points_of_the_parts(example: dict[str, ModuleType]) -> None:
    posts = example["posts"]
    draw = random.Random(0)
    points = [[kind[0] for kind in kinds] for kinds in posts.PARTS.values()]
    answers = [posts.write_answer(posts.TASKS[0], draw) for _ in range(300)]
    assert {answer.votes for answer in answers} <= set(range(sum(map(min, points)), sum(map(max, points)) + 1))
    rude = [answer.votes for answer in answers if "Did you even search?" in answer.text]
    kind = [answer.votes for answer in answers if "Happy to help." in answer.text]
    assert sum(rude) / len(rude) + 2 < sum(kind) / len(kind)


def test_posts_are_the_same_for_a_seed_and_well_apart(example: dict[str, ModuleType]) -> None:
    write = example["posts"].write_pairs
    assert write(20, 1) == write(20, 1) != write(20, 2)
    for pair in write(50, 3):
        assert pair.votes_j - pair.votes_k >= 2
        assert "{" not in pair.question + pair.response_j + pair.response_k


def test_subsets_share_no_post(example: dict[str, ModuleType]) -> None:
    load = example["common"].load_posts
    rows = {
        subset: load(example["common"].HUB_POSTS, f"data/{subset}", True)["qid"] for subset in example["assets"].SUBSETS
    }
    assert {subset: len(ids) for subset, ids in rows.items()} == {
        "finetune": 60, "reward": 80, "rl": 40, "evaluation": 20,
    }  # fmt: skip
    assert len({qid for ids in rows.values() for qid in ids}) == 200


def test_an_answer_brings_its_own_space(example: dict[str, ModuleType]) -> None:
    common = example["common"]
    tokenizer = common.load_tokenizer(str(example["assets"].default_assets().llama))
    prompt, whole = (tokenizer(text)["input_ids"] for text in (common.prompt_of("Q"), common.text_of("Q", "Use it.")))
    assert whole[: len(prompt)] == prompt
