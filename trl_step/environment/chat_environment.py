"""Chat models that use tools: messages, the tokenizer's chat template, and calls in JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers.utils import get_json_schema

from trl_step.data.chat_calls import CALL_MARKS, ParsedCall, parse_tool_calls
from trl_step.data.chat_template import ChatTemplate, Message
from trl_step.environment.rewards import set_rewards
from trl_step.environment.side_by_side import SideBySide
from trl_step.environment.text_history import TextHistory
from trl_step.environment.tool_calls import (
    Tool,
    ToolCall,
    control_pattern,
    escape,
    shorten,
    special_tokens,
    tool_replies,
    tools_by_name,
)
from trl_step.environment.turns import TurnWriter, sampler_of

ChatEpisodes = tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[Any], list[TextHistory]]


class ChatEnvironment:
    """Lets a chat model work on tasks in several turns, with tools that it calls in JSON.

    Like `TextEnvironment`, with messages and the tokenizer's chat template in place of its own protocol. The model's
    turn may contain several calls; they run in parallel, and each is answered by a message with the role `tool`. A turn
    without a call is the answer, and ends the episode.

    Args:
        model: a value-head wrapper or a transformers model, also in a parallel wrapper; or a `Sampler`.
        tokenizer: of that model, with a chat template.
        tools: a dictionary from names to callables, or a list of callables, see `TextEnvironment`; they get the call's
            arguments by keyword. The template shows their JSON schemas, which are read from type hints and a Google
            docstring. The model writes the arguments: treat them as hostile.
        reward_fn: called once per run with the last turn of each episode, without special tokens, and the keyword
            arguments of `run`; returns one number per episode. None leaves the rewards at 0.
        system_prompt: the system message of a task that has none.
        max_turns: model turns per episode.
        max_tool_response: characters of a tool's reply that are kept.
        max_length: tokens of a whole episode; see `TextEnvironment`.
        generation_kwargs: for `model.generate`; never changed. A turn ends at the tokenizer's end token, and at those
            of the generation config or of `eos_token_id` here (`<|im_end|>`, `<|eot_id|>`, `<|eom_id|>`).
        tool_timeout, tool_workers, strict: see `TextEnvironment`.
        chat_template: a Jinja template in place of the tokenizer's.
        template_options: further variables of the template, such as `enable_thinking`.
        tool_schemas: JSON schemas in place of those read from the tools.
        parse_calls: parses the calls in the text of a turn.

    Raises:
        ValueError: there is no chat template, or the schema of a tool cannot be read.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tools: Mapping[str, Tool] | Sequence[Tool] | None = None,
        reward_fn: Callable[..., Sequence[Any]] | None = None,
        system_prompt: str | None = None,
        *,
        max_turns: int = 4,
        max_tool_response: int = 1000,
        max_length: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        tool_timeout: float | None = 60.0,
        tool_workers: int = 32,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        tool_schemas: Sequence[Mapping[str, Any]] | None = None,
        parse_calls: Callable[[str], list[ParsedCall]] = parse_tool_calls,
        strict: bool = False,
    ) -> None:
        if max_turns < 1:
            raise ValueError(f"max_turns={max_turns} must be at least 1")
        self.tools = tools_by_name(tools)
        self.reward_fn = reward_fn
        self.system_prompt = system_prompt
        self.max_turns = max_turns
        self.max_tool_response = max_tool_response
        self.parse_calls = parse_calls
        self.tool_runner = SideBySide(tool_workers, tool_timeout)
        self.strict = strict
        schemas = [_schema(*item) for item in self.tools.items()] if tool_schemas is None else tool_schemas
        self.template = ChatTemplate(tokenizer, chat_template, schemas, template_options)
        self.writer = TurnWriter(
            sampler_of(model, tokenizer),
            tokenizer,
            {} if generation_kwargs is None else generation_kwargs,
            max_length,
        )
        self._control = control_pattern({*CALL_MARKS, *special_tokens(tokenizer)})

    def run(self, tasks: Sequence[str | Sequence[Message]], **reward_kwargs: Any) -> ChatEpisodes:
        """Work on a batch of tasks until each is answered or has had `max_turns` turns.

        Args:
            tasks: each is a text, which becomes a user message, or a list of messages.
            reward_kwargs: passed to `reward_fn`, for instance the right answers.

        Returns:
            `queries, responses, masks, rewards, histories`, one entry per task, like `TextEnvironment.run`. Responses
            hold the model's turns, token for token, and between them the template's text with the tools' replies;
            masks are 1 on the former. An episode that still called tools in its last turn is truncated.

        Raises:
            TypeError, ValueError: a task is neither text nor messages, or the template renders it to nothing.
            RewardError: `reward_fn` returned the wrong number of rewards, or one that is not a finite number.
        """
        if isinstance(tasks, str):
            raise TypeError("run takes a list of tasks; put the single task in a list")
        prompts = [self._messages(i, task) for i, task in enumerate(tasks)]
        histories = [self._start(i, prompt) for i, prompt in enumerate(prompts)]
        self._warn_of_full(histories)
        prompt_of = dict(zip(histories, prompts, strict=True))
        for turn in range(1, self.max_turns + 1):
            wrote = self.writer.write_turns(histories)
            if not wrote:
                break
            self._answer(wrote, prompt_of, last_turn=turn == self.max_turns)
        texts = [self._last_words(history) for history in histories]
        set_rewards(histories, texts, self.reward_fn, reward_kwargs)
        split = [history.split_query_response_tokens() for history in histories]
        queries, responses, masks = ([parts[i] for parts in split] for i in range(3))
        return queries, responses, masks, [history.reward for history in histories], histories

    # --- prompts -------------------------------------------------------------------------------------------------

    def _messages(self, i: int, task: Any) -> list[Message]:
        messages = [{"role": "user", "content": task}] if isinstance(task, str) else task
        if (
            not isinstance(messages, Sequence)
            or not messages
            or not all(isinstance(message, Mapping) and "role" in message for message in messages)
        ):
            raise TypeError(f"task {i} is {task!r:.80}; a task is a text or a list of messages with a role")
        if self.system_prompt is not None and messages[0]["role"] != "system":
            return [{"role": "system", "content": self.system_prompt}, *messages]
        return list(messages)

    def _start(self, i: int, prompt: list[Message]) -> TextHistory:
        text = self.template.render(prompt, open_turn=True)
        tokens = self.template.tokenize(text, self.writer.device)
        if len(tokens) == 0:
            raise ValueError(f"task {i}: the chat template renders it to nothing")
        return TextHistory(text, tokens, system=True)

    def _warn_of_full(self, histories: list[TextHistory]) -> None:
        full = [i for i, history in enumerate(histories) if self.writer.room(history) < 1]
        if full:
            warnings.warn(
                f"the prompts of tasks {full} leave no room within max_length={self.writer.max_length}: these "
                "episodes end truncated and without an answer; leave them out of `step`, or raise max_length",
                UserWarning,
                stacklevel=3,
            )

    # --- turns ---------------------------------------------------------------------------------------------------

    def _answer(
        self, histories: list[TextHistory], prompt_of: dict[TextHistory, list[Message]], last_turn: bool
    ) -> None:
        """Run the calls of all episodes' turns in parallel, and add the replies."""
        parsed = [self.parse_calls(self.writer.spoken(history)) for history in histories]
        waiting: list[tuple[TextHistory, list[ParsedCall]]] = []
        for history, calls in zip(histories, parsed, strict=True):
            if not calls:
                cut_off = int(history.tokens[-1]) not in self.writer.end_ids() and self.writer.room(history) < 1
                history.complete(truncated=cut_off)
            elif last_turn:
                history.complete(truncated=True)
            else:
                waiting.append((history, calls))
        tried = [self._tool_call(call) for _, calls in waiting for call in calls]
        asked = [call for call in tried if not isinstance(call, str)]
        replies = iter(tool_replies(self.tool_runner, asked, self.strict))
        texts = iter([call if isinstance(call, str) else next(replies) for call in tried])
        for history, calls in waiting:
            self._append_replies(history, prompt_of[history], [(call, next(texts)) for call in calls])

    def _tool_call(self, call: ParsedCall) -> ToolCall | str:
        """What to run, or a reply that needs no tool."""
        if call.problem is not None:
            return f"Tool error: {call.problem}"
        if call.name not in self.tools:
            return f"Unknown tool {call.name}. The tools are: {', '.join(self.tools) or 'none'}"
        return partial(_in_json, self.tools[call.name], call.arguments)

    def _append_replies(
        self, history: TextHistory, prompt: list[Message], replies: list[tuple[ParsedCall, str]]
    ) -> None:
        messages = [
            {
                "role": "tool",
                "name": escape(call.name, self._control) or "unknown",
                "tool_call_id": f"call{i:05d}",  # nine letters and digits, as some templates require
                "content": shorten(escape(text, self._control), self.max_tool_response),
            }
            for i, (call, text) in enumerate(replies)
        ]
        between = self.template.between(prompt, messages)
        last = int(history.tokens[-1])
        tokens = self.template.tokens_between(between, last, self.writer.end_ids(), self.writer.device)
        self.writer.append_given(history, self.writer.tokenizer.decode(tokens), tokens)

    def _last_words(self, history: TextHistory) -> str:
        """The model's last turn without special tokens."""
        for (start, end), system in zip(history.token_spans[::-1], history.system_spans[::-1], strict=True):
            if not system:
                written = history.tokens[start:end][history.token_masks[start:end].bool()]
                return self.writer.tokenizer.decode(written, skip_special_tokens=True)
        return ""


def _in_json(tool: Tool, arguments: dict[str, Any]) -> str:
    """A tool's reply as text: anything but a string as JSON, if possible."""
    reply = tool(**arguments)
    if isinstance(reply, str):
        return reply
    try:
        return json.dumps(reply, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(reply)


def _schema(name: str, tool: Tool) -> dict[str, Any]:
    try:
        schema = get_json_schema(tool)
    except Exception as error:
        raise ValueError(
            f"no JSON schema can be read from tool {name!r}: {error} Give it type hints and a Google docstring that "
            "describes every argument, or pass tool_schemas"
        ) from error
    return {**schema, "function": {**schema["function"], "name": name}}
