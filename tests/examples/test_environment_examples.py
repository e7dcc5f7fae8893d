"""The calculator and the game from end to end, with tiny models and few steps; and the parts that they stand on."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.examples.scripts import EXAMPLES, GAME


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The examples' files as modules, importable as they are for a script that lies beside them."""
    names = ("small_model", "small_run", "problems", "ppo_calculator", "group_calculator", "game", "ppo_guess_number",
             "lake", "group_frozen_lake", "nim", "self_play")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("", "calculator", "guess_number", "frozen_lake", "two_players"):
            patch.syspath_prepend(str(EXAMPLES / folder))
        yield {name: __import__(name) for name in names}
        for name in (*names, "sentiment.report", "sentiment"):
            sys.modules.pop(name, None)


def run(script: ModuleType, folder: Path, *options: str) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        words = [*GAME, f"--cache_dir={folder / 'cache'}", f"--output_dir={folder / 'runs'}", *options]
        patch.setattr(sys, "argv", ["script.py", *words])
        script.main()
    return json.loads((folder / "runs" / "summary.json").read_text())


@pytest.fixture
def drawn(modules, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The steps whose curves a run draws."""
    steps: list[dict[str, float]] = []
    draw = modules["small_run"].draw_curves

    def watched(history: list[dict[str, float]], file: Path) -> None:
        steps.extend(history)
        draw(history, file)

    monkeypatch.setattr(modules["small_run"], "draw_curves", watched)
    return steps


def is_png(file: Path) -> bool:
    return file.read_bytes().startswith(b"\x89PNG")


def test_the_calculator_in_short_form(modules, drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(modules["ppo_calculator"], tmp_path, "--held_out=6", "--max_new_tokens=4")
    assert summary["steps"] == len(summary["right_in_training"]) == 2
    assert is_png(tmp_path / "runs" / "curves.png")
    assert [list(step) for step in drawn] == [["reward", "KL", "entropy"]] * 2
    assert [step["reward"] for step in drawn] == summary["right_in_training"]
    assert all(1 < step["entropy"] < 5 for step in drawn), "nats per token, of some forty words"
    assert "right answers on held-out problems: " in capsys.readouterr().out.splitlines()[-1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "model").config.n_embd == 16


def test_the_calculator_by_groups_in_short_form(modules, drawn, tmp_path: Path, monkeypatch) -> None:
    """The tiny model solves nothing, so chance scores here; groups of equal scores are drawn anew."""
    stream = random.Random(0)
    monkeypatch.setattr(modules["ppo_calculator"], "is_right", lambda text, answer: stream.random() < 0.3)
    summary = run(modules["group_calculator"], tmp_path, "--held_out=6", "--max_new_tokens=4", "--attempts=4")
    assert summary["steps"] == len(summary["right_in_training"]) == 2
    assert summary["episodes_drawn"] >= 16
    assert is_png(tmp_path / "runs" / "curves.png")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "model").config.n_embd == 16


def test_the_price_of_length(modules) -> None:
    script = modules["group_calculator"]
    arguments = SimpleNamespace(free_length=24, longest=40)
    prices = [float(script.price_of_length(length, arguments)) for length in (3, 24, 32, 40, 60)]
    assert prices == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_the_calculator_with_a_model_of_a_name(modules, tmp_path: Path) -> None:
    """As from the hub: with its prompt and PPOConfig's own settings."""
    run(modules["ppo_calculator"], tmp_path, "--held_out=2", "--max_new_tokens=2")
    (name,) = (tmp_path / "cache").iterdir()
    model = AutoModelForCausalLM.from_pretrained(name)
    model.config.n_positions = 256
    model.__class__(model.config).save_pretrained(tmp_path / "named")
    AutoTokenizer.from_pretrained(name).save_pretrained(tmp_path / "named")
    script, words = modules["ppo_calculator"], ["--model_name", str(tmp_path / "named")]
    arguments = modules["small_run"].read_arguments(script.Arguments, script.BUILT_IN_SETTINGS, words, "")
    assert arguments.ppo.learning_rate == 1.41e-5
    options = [f"--model_name={tmp_path / 'named'}", "--held_out=2", "--max_new_tokens=2"]
    assert run(modules["ppo_calculator"], tmp_path, *options)["steps"] == 2


def test_the_game_in_short_form(modules, drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(modules["ppo_guess_number"], tmp_path, "--games=1")
    assert summary["steps"] == len(summary["guesses_in_training"]) == 2
    assert summary["guesses_best"] == pytest.approx(3.2667, abs=1e-3)
    assert is_png(tmp_path / "runs" / "curves.png")
    assert [list(step) for step in drawn] == [["guesses", "reward", "KL", "entropy"]] * 2
    assert [step["guesses"] for step in drawn] == summary["guesses_in_training"]
    assert "mean guesses: " in capsys.readouterr().out.splitlines()[-1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "model").config.n_embd == 16


def test_the_frozen_lake_in_short_form(modules, drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(modules["group_frozen_lake"], tmp_path, "--games=4", "--group=4", "--max_turns=3")
    assert summary["steps"] == len(summary["crossed_in_training"]) == 2
    assert summary["crossed_first"] == summary["crossed_last"] == 0.0, "the shortest way takes six turns"
    assert [list(step) for step in drawn] == [["crossed", "reward", "KL", "entropy"]] * 2
    assert is_png(tmp_path / "runs" / "curves.png")
    assert "crossed the lake: 0.000 -> 0.000" in capsys.readouterr().out.splitlines()[-1]


def test_self_play_in_short_form(modules, drawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(modules["self_play"], tmp_path, "--games=4")
    assert summary["steps"] == len(summary["best_moves_in_training"]) == 2
    assert [list(step) for step in drawn] == [["best moves", "reward", "KL", "entropy"]] * 2
    assert is_png(tmp_path / "runs" / "curves.png")
    assert "games won against a random player: " in capsys.readouterr().out.splitlines()[-1]


# --- problems -------------------------------------------------------------------------------------------------------


def test_problems_are_solved_rightly_and_held_out_ones_are_others(modules) -> None:
    problems, numbers = modules["problems"], random.Random(0)
    drawn = [[problems.draw_problem(numbers, held_out) for _ in range(400)] for held_out in (False, True)]
    for problem in drawn[0] + drawn[1]:
        assert float(problem.answer) == eval(problem.expression)  # written by the test's own generator
    pairs = [{tuple(sorted(problem.expression.replace("-", "+").replace("*", "+").split("+"))) for problem in column}
             for column in drawn]  # fmt: skip
    expressions = [{problem.expression for problem in column} for column in drawn]
    assert not expressions[0] & expressions[1]
    assert len(pairs[1]) > 100


@pytest.mark.parametrize(
    ("query", "result"),
    [("12+30", "42"), (" 12 - 30 ", "-18"), ("1.5*4", "6"), ("7/2", "3.5"), ("-3*-2", "6"), ("99*99", "9801")],
)
def test_the_calculator_calculates(modules, query: str, result: str) -> None:
    assert modules["problems"].calculate(query) == result


@pytest.mark.parametrize("query", ["", "3", "1+2+3", "__import__('os')", "2**3", "9" * 5 + "+", "1+2\n3"])
def test_the_calculator_runs_nothing(modules, query: str) -> None:
    with pytest.raises(ValueError, match="write two numbers"):
        modules["problems"].calculate(query)


@pytest.mark.parametrize(
    ("text", "right"),
    [("Result=42<submit>", True), ("87<response>\nResult = 42.0<submit>", True), ("Result=4 Result=42", True),
     ("Result=421<submit>", False), ("Result=42 Result=4", False), ("42<submit>", False), ("Result=42.5", False),
     ("", False)],
)  # fmt: skip
def test_what_counts_as_right(modules, text: str, right: bool) -> None:
    assert modules["problems"].is_right(text, "42") is right


def test_written_episodes_are_what_the_environment_makes_of_them(modules) -> None:
    problems, numbers = modules["problems"], random.Random(1)
    kinds = {"direct": 0, "right": 0, "slip": 0}
    for _ in range(600):
        text = problems.write_episode(numbers)
        question, called, rest = text.partition("<request><Calculator>")
        assert text.endswith("<submit>")
        if not called:
            kinds["direct"] += 1
            continue
        expression, reply = rest.split("<call>")[0], rest.split("<call>")[1].split("<response>")[0]
        assert reply == problems.calculate(expression)
        assert rest.endswith(f"Result={reply}<submit>")
        digits = [word.strip("?.") for word in question.split() if word.strip("?.").isdigit()]
        kinds[
            "right" if sorted(digits) == sorted(expression.replace("-", "+").replace("*", "+").split("+")) else "slip"
        ] += 1
    assert 0.4 < kinds["direct"] / 600 < 0.6
    assert kinds["right"] > 100
    assert kinds["slip"] > 60


# --- the game -------------------------------------------------------------------------------------------------------


def play(modules, secret: int, guesses: list[str]) -> tuple[list[str], list[float], list[bool]]:
    game = modules["game"].GuessTheNumber()
    said = [game.reset(secret)]
    rewards, ends = [], []
    for guess in guesses:
        observation, reward, done, _ = game.step(guess)
        said.append(observation)
        rewards.append(reward)
        ends.append(done)
    return said, rewards, ends


def test_a_game_by_hand(modules) -> None:
    said, rewards, ends = play(modules, 6, ["8\n", "4", " 6\n"])
    assert said == ["I think of a number from 1 to 15.\n", "lower, 1 to 7\n", "higher, 5 to 7\n", ""]
    assert rewards == [0.0, 0.0, 1.0], "each half is worth its price; the last guess found one of three"
    assert ends == [False, False, True]


@pytest.mark.parametrize("guesses", [["8", "4", "6"], ["1", "15", "9", "2", "6"], ["8", "8", "8", "6"], ["6"]])
def test_rewards_of_a_game_add_up_to_a_constant_minus_its_guesses(modules, guesses: list[str]) -> None:
    assert sum(play(modules, 6, guesses)[1]) == pytest.approx(4 - len(guesses))


@pytest.mark.parametrize("guess", ["", "eight", "8 or 9", "٨", "8888", "-3", "<request>"])
def test_what_is_no_number_ends_the_game(modules, guess: str) -> None:
    assert play(modules, 6, [guess])[1:] == ([-4.0], [True])


def test_the_best_player_and_the_one_without_a_plan(modules) -> None:
    game = modules["game"]

    def halve(low: int, high: int) -> list[int]:
        if low > high:
            return []
        middle = (low + high) // 2
        return [1] + [1 + n for n in halve(low, middle - 1) + halve(middle + 1, high)]

    assert sum(halve(1, game.HIGHEST)) / game.HIGHEST == pytest.approx(game.BEST_MEAN)
    numbers = random.Random(0)
    lengths = []
    for _ in range(3000):
        lines = game.write_game(numbers).splitlines()
        guesses, answers = lines[1::2], lines[2::2]
        said, _, ends = play(modules, int(guesses[-1]), guesses)
        assert [line.strip() for line in said[1:-1]] == answers
        assert ends == [False] * (len(guesses) - 1) + [True]
        lengths.append(len(guesses))
    harmonic = sum(1 / k for k in range(1, 16))
    assert sum(lengths) / 3000 == pytest.approx(2 * (16 / 15) * harmonic - 3, abs=0.1)
    assert game.guesses_needed([{"guess": 3}, {"guess": 6}], 6) == 2
    assert game.guesses_needed([{"guess": 3}] * 7, 6) == game.MOST_GUESSES + 1
    assert game.guesses_needed([{"guess": None}], 6) == game.MOST_GUESSES + 1


# --- the lake and the heap -----------------------------------------------------------------------------------------


def test_the_lake_in_words(modules) -> None:
    lake = modules["lake"]
    assert [lake.to_text(field) for field in (0, 6, 15)] == [
        "row one column one\n", "row two column three\n", "row four column four\n"]  # fmt: skip
    assert [lake.to_action(f"{word}\n") for word in ("left", "down", "right", "up")] == [0, 1, 2, 3]
    for text in ("", "leftright", "go left", "row"):
        with pytest.raises(lake.UnreadableAction) as raised:
            lake.to_action(text)
        assert raised.value.price == 0.05
    world = lake.make_lake()
    world.reset(seed=0)
    rewards = [world.step(lake.to_action(word))[1] for word in ("right", "right", *3 * ("down",), "right")]
    assert rewards == [0, 0, 0, 0, 0, 1]
    text = lake.write_walk(random.Random(0), 50)
    assert {"left", "down", "right", "up"} <= set(text.split())


def test_the_best_player_of_nim_wins_what_can_be_won(modules) -> None:
    """Against every play: tried by going through all games."""
    nim = modules["nim"]

    def wins(heap: int) -> bool:
        return any(taken == heap or not wins(heap - taken) for taken in range(1, min(nim.MOST, heap) + 1))

    for heap in range(1, nim.LARGEST + 1):
        best = nim.best_moves(heap)
        assert bool(best) == wins(heap)
        assert all(taken == heap or not wins(heap - taken) for taken in best)


def test_a_game_of_nim_by_hand(modules) -> None:
    game = modules["nim"].Nim()
    game.reset(seed=3)
    game.heap = 6
    assert game.get_observation() == (0, "heap 6\n")
    assert game.step("2\n") == (False, {"heap": 6, "taken": 2, "best": True})
    assert game.get_observation() == (1, "heap 4\n")
    assert game.close()[0] is None
    assert game.step("3")[0] is False
    assert game.step("1") == (True, {"heap": 1, "taken": 1, "best": True})
    assert game.close()[0] == {0: 1.0, 1: -1.0}
    for move in ("0", "4", "", "two", "1 2", "²"):
        game.reset(seed=3)
        assert game.step(move)[0] is True
        assert game.close()[0] == {0: -1.0, 1: 1.0}
    heaps = {(game.reset(seed=seed), game.heap)[1] for seed in range(200)}
    assert heaps == set(range(modules["nim"].SMALLEST, modules["nim"].LARGEST + 1))
    text = modules["nim"].write_game(random.Random(1))
    assert modules["nim"].random_move(text).strip() in ("1", "2", "3")


# --- the small model ------------------------------------------------------------------------------------------------


def test_a_model_is_built_once_and_anew_after_a_change(modules, tmp_path: Path) -> None:
    small, built = modules["small_model"], []
    settings, source = small.SmallModelSettings(), tmp_path / "source.py"
    source.write_text("one")

    def write(folder: Path) -> None:
        built.append(folder)
        (folder / "file").write_text("done")

    first = small.build_once(tmp_path / "cache", settings, [source], write)
    assert small.build_once(tmp_path / "cache", settings, [source], write) == first
    assert len(built) == 1
    source.write_text("two")
    assert small.build_once(tmp_path / "cache", settings, [source], write) != first
    assert small.build_once(tmp_path / "cache", small.SmallModelSettings(seed=1), [source], write) != first

    def fail(folder: Path) -> None:
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        small.build_once(tmp_path / "other", settings, [source], fail)
    assert list((tmp_path / "other").iterdir()) == []


def test_the_tokenizer_gives_every_text_of_its_words_back(modules) -> None:
    tokenizer = modules["small_model"].word_tokenizer(["What is 49 plus 38?<request><Calculator>49+38<call>"])
    for text in ("What is 38 plus 49?", "<request><Calculator>8+9<call>", "49+38"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.unk_token_id in tokenizer("never seen").input_ids
