"""Scores of answers, by a model or by a function of the user's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from trl_step.models.critic import Critic
from trl_step.sampling.local import sampling_mode

BY_NAME = ("prompts", "completions")
"""A function with one of these parameters is given both by name; any other one gets whole texts first."""
SHOWN = 60
"""Characters of a prompt in a message."""


class Answers(NamedTuple):
    """What is scored, one entry per answer."""

    queries: list[torch.Tensor]
    """token ids, each [Q_i]"""
    responses: list[torch.Tensor]
    """token ids, each [R_i]"""
    columns: dict[str, list[Any]]
    """the other columns of the data set, each with the value of the answer's prompt"""


class Scorer:
    """Calls the reward model, or function, and checks what comes back.

    Args:
        reward_model: a model for sequence classification with one label, read at the last token of each answer; or a
            function `texts -> numbers`, of prompt and answer together; or a function with the parameters `prompts` and
            `completions`. A function also gets those columns of the data set, and `responses` (token ids), that it has
            parameters for.
        tokenizer: decodes for a function
        batch_size: answers that go through a model together
        device: of a model

    Raises:
        ValueError: `reward_model` is neither.
    """

    def __init__(self, reward_model: Any, tokenizer: Any, batch_size: int, device: torch.device) -> None:
        self.tokenizer, self.batch_size, self.device = tokenizer, batch_size, device
        self.model: Any = None
        self.function: Callable[..., Any] | None = None
        if isinstance(reward_model, torch.nn.Module):
            self.model = reward_model.to(device).eval()
            self.reader = _reader(self.model)
        elif callable(reward_model):
            self.function = reward_model
            self.parameters = inspect.signature(reward_model).parameters
        else:
            raise ValueError(
                "reward_model must be a model for sequence classification or a function of texts, got "
                f"{type(reward_model).__name__}"
            )

    def __call__(self, answers: Answers) -> list[float]:
        """One finite number per answer.

        Raises:
            ValueError: a wrong number of scores, or one that is not a finite number; the prompts are named.
            RuntimeError: the function raised an error, which is the cause of this one.
        """
        if self.function is None:
            return self._by_model(answers)
        prompts = self.tokenizer.batch_decode(answers.queries, skip_special_tokens=True)
        try:
            found = self._call(prompts, answers)
        except Exception as error:
            raise RuntimeError(
                f"reward_model raised {type(error).__name__}: {error}; the prompts were {_listed(prompts)}"
            ) from error
        return _checked(found, prompts)

    def _call(self, prompts: list[str], answers: Answers) -> Any:
        function, decode = self.function, self.tokenizer.batch_decode
        assert function is not None
        known = {**answers.columns, "responses": answers.responses}
        takes_all = any(one.kind is one.VAR_KEYWORD for one in self.parameters.values())
        if any(name in self.parameters for name in BY_NAME):
            known |= {"prompts": prompts, "completions": decode(answers.responses, skip_special_tokens=True)}
            return function(**{name: value for name, value in known.items() if takes_all or name in self.parameters})
        first = next(iter(self.parameters), None)
        named = {name: known[name] for name in known if name != first and (takes_all or name in self.parameters)}
        pairs = zip(answers.queries, answers.responses, strict=True)
        return function(decode([torch.cat(pair) for pair in pairs], skip_special_tokens=True), **named)

    def _by_model(self, answers: Answers) -> list[float]:
        whole = [torch.cat(pair) for pair in zip(answers.queries, answers.responses, strict=True)]
        order = sorted(range(len(whole)), key=lambda i: len(whole[i]), reverse=True)
        scores = [0.0] * len(whole)
        with sampling_mode(self.model):
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                found = self.reader([whole[i].to(self.device) for i in rows])
                for i, score in zip(rows, found.tolist(), strict=True):
                    scores[i] = score
        prompts = self.tokenizer.batch_decode(answers.queries, skip_special_tokens=True)
        return _checked(scores, prompts)


def _reader(model: Any) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """What reads a score [n] for each of n sequences [S_i], without padding."""
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    if labels != 1:
        raise ValueError(
            f"reward_model ({type(model).__name__}) has {labels} labels: take a model for sequence classification with "
            "num_labels=1, or a function"
        )
    try:
        critic = Critic(model)
    except ValueError:  # not a decoder: its own pooling decides where it is read
        return lambda sequences: _pooled(model, sequences)

    def at_the_last_token(sequences: list[torch.Tensor]) -> torch.Tensor:
        ids, mask = _padded(sequences)
        last = torch.arange(len(ids), device=ids.device) * ids.shape[1] + mask.sum(dim=1) - 1
        return critic(rows=last, input_ids=ids, attention_mask=mask)

    return at_the_last_token


def _pooled(model: Any, sequences: list[torch.Tensor]) -> torch.Tensor:
    ids, mask = _padded(sequences)
    return model(input_ids=ids, attention_mask=mask).logits[:, 0].float()  # type: ignore[no-any-return]


def _padded(sequences: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask [n, S], padded on the right."""
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    lengths = torch.tensor([len(one) for one in sequences], device=ids.device)
    return ids, (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)).long()


def _checked(found: Any, prompts: Sequence[str]) -> list[float]:
    try:
        if isinstance(found, (Mapping, str)):
            raise TypeError
        numbers = [float(one) for one in found]
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"reward_model returned {found!r:.80}; it must return one number per answer, of which there are "
            f"{len(prompts)}, for the prompts {_listed(prompts)}"
        ) from None
    if len(numbers) != len(prompts):
        raise ValueError(
            f"reward_model returned {len(numbers)} scores for {len(prompts)} answers, to the prompts {_listed(prompts)}"
        )
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"reward_model gave answer {i} the score {number}; its prompt is {_short(prompts[i])}")
    return numbers


def _listed(prompts: Sequence[str], most: int = 4) -> str:
    different = list(dict.fromkeys(prompts))
    more = f" and {len(different) - most} more" if len(different) > most else ""
    return ", ".join(map(_short, different[:most])) + more


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]} …")
