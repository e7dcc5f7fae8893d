"""`StringStoppingCriteria` ends each row by itself, and reads each token once."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, StopStringCriteria

from tests.environment.environment_tools import PAD, byte_tokenizer
from tests.tiny import tokenizer as word_tokenizer
from trl_step.environment import EnvironmentRunner, StringStoppingCriteria

TOKENIZER = byte_tokenizer(bos=False)


def ids_of(*texts: str) -> torch.Tensor:
    rows = [torch.tensor(TOKENIZER(text).input_ids) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def feed(criterion: StringStoppingCriteria, ids: torch.Tensor, prompt_width: int) -> list[list[bool]]:
    return [criterion(ids[:, :width], None).tolist() for width in range(prompt_width + 1, ids.shape[1] + 1)]


def first_stops(answers: list[list[bool]]) -> list[int | None]:
    """For each row the number of new tokens at the first True."""
    return [next((i + 1 for i, row in enumerate(column) if row), None) for column in zip(*answers, strict=True)]


def test_each_row_ends_at_its_own_stop_string() -> None:
    criterion = StringStoppingCriteria(["<call>", "<submit>"], TOKENIZER)
    answers = feed(criterion, ids_of("??ab<call>zzzzz", "??<submit>zzzzz", "??abcdefghijklm"), 2)
    assert first_stops(answers) == [8, 8, None]
    assert criterion.generated_tokens == [8, 8, 13]
    assert answers[-1] == [True, True, False]


def test_the_prompt_does_not_count() -> None:
    criterion = StringStoppingCriteria(["<call>"], TOKENIZER)
    assert first_stops(feed(criterion, ids_of("x<call>abc"), 7)) == [None]
    assert first_stops(feed(StringStoppingCriteria(["<call>"], TOKENIZER), ids_of("<call>abc"), 5)) == [None]


def test_characters_of_several_tokens() -> None:
    """The bytes of a character arrive one by one; what stands around them is read all the same."""
    text = "é<cäll>é€𝄞<cäll"
    criterion = StringStoppingCriteria(["<cäll>"], TOKENIZER)
    ids = ids_of("?" + text)
    assert first_stops(feed(criterion, ids, 1)) == [len("é<cäll>".encode())]


def test_stop_string_after_bytes_that_never_become_a_character() -> None:
    broken = [TOKENIZER(character).input_ids[0] for character in "é" * 20]  # first bytes only
    ids = torch.tensor([broken + TOKENIZER("<call>").input_ids])
    assert first_stops(feed(StringStoppingCriteria(["<call>"], TOKENIZER), ids, 1)) == [25]


def test_one_criterion_for_several_batches() -> None:
    criterion = StringStoppingCriteria(["!"], TOKENIZER)
    assert first_stops(feed(criterion, ids_of("?a!b", "?abc"), 1)) == [2, None]
    assert first_stops(feed(criterion, ids_of("?abc!", "?!abc"), 1)) == [4, 1]
    assert criterion.generated_tokens == [4, 1]


def test_a_new_batch_that_is_as_wide_as_the_next_step() -> None:
    criterion = StringStoppingCriteria(["!"], TOKENIZER)
    assert first_stops(feed(criterion, ids_of("?a!"), 1)) == [2]
    assert first_stops(feed(criterion, ids_of("?bcd"), 3)) == [None]
    assert criterion.generated_tokens == [1]


def test_a_batch_that_looks_like_the_last_one_going_on() -> None:
    criterion = StringStoppingCriteria(["!"], TOKENIZER)
    feed(criterion, ids_of("?a!"), 1)
    assert criterion(ids_of("?a!b"), None).tolist() == [True]
    criterion.start_batch()
    assert criterion(ids_of("?a!b"), None).tolist() == [False]


def test_several_tokens_at_once() -> None:
    criterion = StringStoppingCriteria(["<call>"], TOKENIZER)
    ids = ids_of("?ab<call>zz")
    answers = [criterion(ids[:, :width], None).tolist() for width in (2, 5, 10, 11)]
    assert answers == [[False], [False], [True], [True]]
    assert criterion.generated_tokens == [8]


@pytest.mark.parametrize("stops", [[], ["x"]])
def test_short_lists(stops: list[str]) -> None:
    assert first_stops(feed(StringStoppingCriteria(stops, TOKENIZER), ids_of("?abxc"), 1)) == [3 if stops else None]


def test_the_cost_is_linear_in_the_new_tokens() -> None:
    decoded = []

    class Counter:
        def batch_decode(self, rows, **kwargs):
            decoded.append(sum(len(row) for row in rows))
            return TOKENIZER.batch_decode(rows, **kwargs)

    criterion = StringStoppingCriteria(["<call>"], Counter())
    feed(criterion, ids_of("?" + "a" * 400), 1)
    assert sum(decoded) <= 4 * 400
    assert len(criterion._rows[0].tail) < len("<call>")

    decoded.clear()
    first_byte = TOKENIZER("é").input_ids[0]
    feed(StringStoppingCriteria(["<call>"], Counter()), torch.full((1, 400), first_byte), 1)
    assert sum(decoded) <= 4 * 10 * 400


def test_finished_rows_are_not_read_any_more() -> None:
    decoded = []

    class Counter:
        def batch_decode(self, rows, **kwargs):
            decoded.append(len(rows))
            return TOKENIZER.batch_decode(rows, **kwargs)

    feed(StringStoppingCriteria(["!"], Counter()), ids_of("?!bcdefgh", "?abcdefgh"), 1)
    assert decoded == [2, 2] + [1] * 14


def test_text_that_the_first_token_owes_to_its_place() -> None:
    """Llama's decoder takes the space from in front of a text; the new text begins inside of one."""
    words = {word: i for i, word in enumerate(["▁a", "▁b", "c"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="c"))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer.decode([1, 2]) == "bc"
    assert first_stops(feed(StringStoppingCriteria([" b"], tokenizer), torch.tensor([[0, 1, 2]]), 1)) == [1]


def test_rows_that_change_places() -> None:
    criterion = StringStoppingCriteria(["ab", "cd"], TOKENIZER)
    for rows, want in (
        (("?a", "?c", "?x"), [False, False, False]),
        (("?ca", "?ab", "?ad"), [False, True, False]),
        (("?adb", "?abx", "?cab"), [False, True, True]),
        (("?cabx", "?adbc", "?abxx"), [True, False, True]),
    ):
        assert criterion(ids_of(*rows), None).tolist() == want
    assert criterion.generated_tokens == [3, 4, 2]


def test_where_the_criterion_of_transformers_falls_short() -> None:
    """The reasons for one of our own. If this fails, see whether they are still true."""
    words, characters = word_tokenizer(), ByT5Tokenizer()
    two_words, byte_by_byte = torch.tensor([[4, 5, 6, 7]]), torch.tensor([characters("xé!y").input_ids])
    assert first_stops(feed(StringStoppingCriteria(["w5 w6"], words), two_words, 1)) == [2]
    with pytest.raises(ValueError, match="substring not found"):
        StopStringCriteria(words, ["w5 w6"])
    assert first_stops(feed(StringStoppingCriteria(["é!"], characters), byte_by_byte, 1)) == [3]
    assert first_stops(feed(StopStringCriteria(characters, ["é!"]), byte_by_byte, 1)) == [None]
    in_the_prompt = ids_of("<call>")
    assert first_stops(feed(StringStoppingCriteria(["<call>"], TOKENIZER), in_the_prompt, 3)) == [None]
    assert first_stops(feed(StopStringCriteria(TOKENIZER, ["<call>"]), in_the_prompt, 3)) == [3]


def test_a_single_string_is_no_list_of_letters() -> None:
    with pytest.raises(TypeError, match="put the single one in a list"):
        StringStoppingCriteria("</s>", None)
    with pytest.raises(TypeError, match="put the single one in a list"):
        EnvironmentRunner(None, None, dict, stop_strings="</s>")
