"""A text environment with tools: `<request><tool>query<call> reply<response> ... <submit>`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from trl_step.environment.rewards import RewardError, set_rewards
from trl_step.environment.side_by_side import SideBySide
from trl_step.environment.text_history import TextHistory
from trl_step.environment.tool_calls import (
    Tool,
    ToolCall,
    control_pattern,
    escape,
    find_tool_call,
    shorten,
    special_tokens,
    tool_replies,
    tools_by_name,
)
from trl_step.environment.turns import TurnWriter, sampler_of
from trl_step.sampling.stop_strings import StringStoppingCriteria

__all__ = ["RewardError", "StringStoppingCriteria", "TextEnvironment", "TextHistory"]

Episode = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[Any], list[TextHistory]]


class TextEnvironment:
    """Lets a language model work on tasks in several turns, with tools.

    The model calls a tool with `<request><name>query<call>`; the environment answers with the tool's reply and
    `<response>`, and the model continues. `<submit>` or an end-of-sequence token that the model wrote ends the episode,
    and so does a turn without a closed call.

    Args:
        model: a value-head wrapper or a transformers model, also in a parallel wrapper; or a `Sampler`.
        tokenizer: of that model.
        tools: a dictionary from names to callables `str -> reply`, or a list of callables, named by their class
            (functions by their name). The model writes the strings that they get: treat them as hostile.
        reward_fn: called once per run with the last text segment of each episode and the keyword arguments of `run`;
            returns one number per episode. None leaves the rewards at 0.
        prompt: put before every task.
        max_turns: model turns per episode.
        max_tool_reponse: characters of a tool's reply that are kept (spelled as in release 0.7).
        max_length: tokens of a whole episode. A turn gets the remaining room; an episode ends truncated if there is no
            room for the model's next token or a tool's reply, or if the prompt leaves none.
        generation_kwargs: for `model.generate`; never changed.
        max_tool_response: the same as `max_tool_reponse`; takes precedence over it.
        tool_timeout: seconds that one tool call may take; None waits forever. A late call is answered with an error
            text and abandoned, as Python cannot stop a thread.
        tool_workers: calls of a turn that run at the same time; 0 runs them one by one in the caller's thread,
            without a time limit.
        strict: raise what a tool raised, while you write it, instead of answering with an error text.

    Attributes:
        request_token, call_token, response_token, submit_token: the protocol; may be set to other strings.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        tools: Mapping[str, Tool] | Sequence[Tool] | None = None,
        reward_fn: Callable[..., Sequence[Any]] | None = None,
        prompt: str | None = None,
        max_turns: int = 4,
        max_tool_reponse: int = 100,
        max_length: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        max_tool_response: int | None = None,
        tool_timeout: float | None = 60.0,
        tool_workers: int = 32,
        strict: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.tools = tools_by_name(tools)
        self.reward_fn = reward_fn
        self.max_length = max_length
        self.request_token = "<request>"
        self.call_token = "<call>"
        self.response_token = "<response>"
        self.submit_token = "<submit>"
        self.max_turns = max_turns
        self.max_tool_response = max_tool_reponse if max_tool_response is None else max_tool_response
        self.generation_kwargs = {} if generation_kwargs is None else generation_kwargs
        self.tool_runner = SideBySide(tool_workers, tool_timeout)
        self.strict = strict

        self._sampler: tuple[Any, Any] = None, None
        self._control: tuple[tuple[str, ...], re.Pattern[str]] | None = None

    @property
    def _writer(self) -> TurnWriter:
        """Created on each access, as all of its settings may change."""
        if self._sampler[0] is not self.model:
            self._sampler = self.model, sampler_of(self.model, self.tokenizer)
        return TurnWriter(
            self._sampler[1],
            self.tokenizer,
            self.generation_kwargs,
            self.max_length,
            (self.call_token, self.submit_token),
        )

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model's turns are decoder tokens after a start token."""
        return self._writer.is_encoder_decoder

    @property
    def current_device(self) -> torch.device:
        """That of the episodes' tokens."""
        return self._writer.device

    # --- a run ---------------------------------------------------------------------------------------------------

    def run(self, queries: Sequence[str], **rewards_kwargs: Any) -> Episode:
        """Work on a batch of tasks until each is finished or has had `max_turns` turns.

        Args:
            queries: task texts; `prompt` is put before each.
            rewards_kwargs: passed to `reward_fn`, for instance the right answers.

        Returns:
            `queries, responses, masks, rewards, histories`, one entry per task; the first four are ready for
            `PPOTrainer.step(queries, responses, rewards, masks)`. Responses [R] hold the model's tokens and the
            tools' replies, masks [R] are 1 on the model's. An episode whose prompt leaves no room within `max_length`
            has a single masked end token for a response: leave it out of `step`.

        Raises:
            TypeError, ValueError: a task is not a string, or its prompt has no tokens.
            RewardError: `reward_fn` returned the wrong number of rewards, or one that is not a finite number.
        """
        histories = self._start(queries)
        for _ in range(self.max_turns):
            if all(history.completed for history in histories):
                break
            histories = self.generate(histories)
            histories = self.tasks_end_check(histories)
            histories = self._step_all(histories)
            histories = self.tasks_end_check(histories, model_turn=False)
        self.compute_reward(histories, **rewards_kwargs)
        split = [history.split_query_response_tokens() for history in histories]
        query_tensors, responses, masks = ([parts[i] for parts in split] for i in range(3))
        return query_tensors, responses, masks, [history.reward for history in histories], histories

    def _start(self, queries: Sequence[str]) -> list[TextHistory]:
        if isinstance(queries, str):
            raise TypeError("run takes a list of tasks; put the single task in a list")
        histories = []
        for i, task in enumerate(queries):
            if not isinstance(task, str):
                raise TypeError(f"task {i} is a {type(task).__name__}; tasks are strings")
            text = (self.prompt or "") + task
            tokens = self._writer.tokenize(text)
            if len(tokens) == 0:
                raise ValueError(f"task {i} has no tokens; the task or `prompt` needs some text")
            histories.append(TextHistory(text, tokens, system=True))
        full = [i for i, history in enumerate(histories) if self._writer.room(history) < 1]
        if full:
            warnings.warn(
                f"the prompts of tasks {full} leave no room within max_length={self.max_length}: these episodes end "
                "truncated and without an answer; leave them out of `step`, or raise max_length",
                UserWarning,
                stacklevel=3,
            )
        return histories

    def generate(self, histories: list[TextHistory]) -> list[TextHistory]:
        """Let the model write one turn of every episode that is not completed.

        An episode without room for a token is completed as truncated; a generation without tokens counts as an end
        token.
        """
        for history in histories:
            if not history.completed and self._writer.room(history) < 1:
                self._writer.close_full(history)
        active = [history for history in histories if not history.completed]
        if not active:
            return histories
        responses = self._generate_batched([history.tokens for history in active])
        for history, response in zip(active, responses, strict=True):
            self._writer.append_turn(history, response)
        return histories

    def step(self, history: TextHistory) -> TextHistory:
        """Answer the tool call in the last segment of `history`, or complete it if there is none to answer.

        A subclass may override it; then the calls of a turn are answered one by one.
        """
        call = self._next_call(history)
        if call is not None:
            self._append_reply(
                history, call if isinstance(call, str) else tool_replies(self.tool_runner, [call], self.strict)[0]
            )
        return history

    def _step_all(self, histories: list[TextHistory]) -> list[TextHistory]:
        """`step` for all, with the tools of this turn in parallel."""
        if type(self).step is not _OWN_STEP or "step" in vars(self):
            return [self.step(history) for history in histories]
        calls = [self._next_call(history) for history in histories]
        asked = [call for call in calls if call is not None and not isinstance(call, str)]
        replies = iter(tool_replies(self.tool_runner, asked, self.strict))
        for history, call in zip(histories, calls, strict=True):
            if call is not None:
                self._append_reply(history, call if isinstance(call, str) else next(replies))
        return histories

    def parse_tool_call(self, text: str) -> tuple[str | None, str | None]:
        """(tool name, query) of `<request><name>query<call>` in `text`, or (None, None).

        # differs from v0.7: a request inside a request is not a call; there the inner one became the query
        """
        return find_tool_call(text, self.request_token, self.call_token)

    def compute_reward(self, histories: list[TextHistory], **reward_kwargs: Any) -> list[TextHistory]:
        """Set `reward` of every episode from `reward_fn`, which sees the last text segments.

        Raises:
            RewardError: wrong number of rewards, or one that is not a finite number.
        """
        set_rewards(histories, [history.last_text_segment for history in histories], self.reward_fn, reward_kwargs)
        return histories

    # --- when an episode ends ------------------------------------------------------------------------------------

    def tasks_end_check(self, histories: list[TextHistory], model_turn: bool = True) -> list[TextHistory]:
        """Complete every episode that has ended according to `task_end_check`."""
        for history in histories:
            if not history.completed:
                truncated, ended = self.task_end_check(history, model_turn=model_turn)
                if ended:
                    history.complete(truncated=truncated)
        return histories

    def task_end_check(self, history: TextHistory, model_turn: bool = True) -> tuple[bool, bool]:
        """(truncated, ended) of an episode that is not completed yet; (False, False) of one that is.

        Args:
            history: the episode.
            model_turn: the model has just written; False after a tool's reply, whose text cannot end an episode.
        """
        if history.completed:
            return False, False
        text = history.last_text_segment
        by_model = not history.system_spans[-1]
        if self.max_length is not None and len(history.tokens) > self.max_length:
            return True, True
        if by_model and self._has_end_token(history.last_token_segment):
            return False, True
        if (by_model or model_turn) and self.submit_token in text:
            return False, True
        if model_turn and not (self.request_token in text and self.call_token in text):
            return self._writer.room(history) < 1, True  # without room the turn was cut off, not finished
        return False, False

    def _has_end_token(self, tokens: torch.Tensor) -> bool:
        # differs from v0.7: it looked for the end token's text anywhere in the episode, including the prompt
        written = tokens[1:] if self.is_encoder_decoder else tokens
        return not self._writer.end_ids().isdisjoint(written.tolist())

    # --- replies -------------------------------------------------------------------------------------------------

    def _next_call(self, history: TextHistory) -> ToolCall | str | None:
        """What the last segment requests: a call, a reply that needs no tool, or None, which completes the episode."""
        truncated, ended = self.task_end_check(history)
        if ended:
            history.complete(truncated=truncated)
        if history.completed:
            return None
        name, query = self.parse_tool_call(history.last_text_segment)
        if name is None or query is None:
            return f"Unknown tool call: {history.last_text_segment}"
        if name not in self.tools:
            return f"Unknown tool {name}."
        return partial(self.tools[name], query)

    def _append_reply(self, history: TextHistory, reply: str) -> None:
        """Add a tool's reply, escaped and shortened; if it leaves no room, end the episode instead."""
        # differs from v0.7: a reply could submit, call, or end the sequence, and began with the tokenizer's BOS
        text = shorten(escape(reply, self._control_pattern()), self.max_tool_response) + self.response_token
        self._writer.append_given(history, text, self._writer.tokenize(text, special_tokens=False))

    def _control_pattern(self) -> re.Pattern[str]:
        """Matches the protocol's tokens and all special tokens of the tokenizer; rebuilt when the former change."""
        protocol = (self.request_token, self.call_token, self.response_token, self.submit_token)
        if self._control is None or self._control[0] != protocol:
            self._control = protocol, control_pattern({*protocol, *special_tokens(self.tokenizer)})
        return self._control[1]

    # --- generation ----------------------------------------------------------------------------------------------

    def _generate_batched(
        self, query_tensors: Sequence[torch.Tensor], batch_size: int = 16, pad_to_multiple_of: int | None = None
    ) -> list[torch.Tensor]:
        """One turn per query [Q_i]: int64 tensors [R_i] that end at a stop string, an end token or the limit."""
        return self._writer.generate(query_tensors, batch_size, pad_to_multiple_of)


_OWN_STEP = TextEnvironment.step
