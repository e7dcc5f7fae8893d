"""Turns a checked request into prompts of tokens, and samples into an answer and a record."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import torch

from trl_step.data.chat_template import ChatTemplate
from trl_step.sampling.endpoint.batching import Drawn
from trl_step.sampling.endpoint.errors import ApiError, refused
from trl_step.sampling.endpoint.fields import Asked, Fields, read_common
from trl_step.sampling.endpoint.messages import Conversation, read_messages, read_tools
from trl_step.sampling.endpoint.recording import Answer, Recorder
from trl_step.sampling.endpoint.replies import Choice, Reply
from trl_step.sampling.endpoint.settings import ServeSettings
from trl_step.sampling.endpoint.turns import read_turn

CPU = torch.device("cpu")


class Call(NamedTuple):
    """A request, ready to be sampled."""

    id: str
    episode: Optional[str]
    prompts: list[torch.Tensor]
    """each [Q_i] int64"""
    asked: Asked
    chat: Optional[Conversation] = None
    with_calls: bool = False
    """whether calls of tools are parsed"""


@dataclass(frozen=True)
class Calls:
    """Reads requests and writes their answers.

    Args:
        settings: of the endpoint
        tokenizer: of the model, used by one thread alone
        recorder: what knows the conversations so far
        takes_seeds: whether the sampler does
    """

    settings: ServeSettings
    tokenizer: Any
    recorder: Recorder
    takes_seeds: bool

    # --- requests ------------------------------------------------------------------------------------------------

    def read_chat(self, body: Mapping[str, Any], episode: Optional[str]) -> Call:
        """A request to /v1/chat/completions; `ApiError` 400 or 404 if it is wrong."""
        fields = Fields(body)
        self._check_model(fields)
        chat = Conversation(read_messages(fields.take("messages")), read_tools(fields.take("tools", [])))
        choice = fields.take("tool_choice", "auto")
        if choice not in ("auto", "none"):
            raise refused(
                "tool_choice", f"{choice!r:.80} is not possible: no call can be forced; give 'auto' or 'none'"
            )
        limits = ("max_completion_tokens", "max_tokens")
        asked = self._read_common(fields, limits, fields.boolean("logprobs"))
        prompt = self._in_template(chat, episode)
        with_calls = bool(chat.tools) and choice == "auto"
        asked = self._with_limit(asked, [prompt], limits[0])
        return Call(f"chatcmpl-{secrets.token_hex(12)}", episode, [prompt], asked, chat, with_calls)

    def read_completion(self, body: Mapping[str, Any], episode: Optional[str]) -> Call:
        """A request to /v1/completions; `ApiError` 400 or 404 if it is wrong."""
        fields = Fields(body)
        self._check_model(fields)
        prompts = self._prompts(fields.take("prompt"))
        logprobs = fields.number("logprobs", 0, 0, whole=True) is not None
        asked = self._read_common(fields, ("max_tokens",), logprobs)
        asked = self._with_limit(asked, prompts, "max_tokens")
        return Call(f"cmpl-{secrets.token_hex(12)}", episode, prompts, asked)

    def _check_model(self, fields: Fields) -> None:
        asked = fields.take("model", self.settings.model_name)
        if asked != self.settings.model_name:
            why = f"there is no model {asked!r:.80}; the one that is served is {self.settings.model_name!r}"
            raise ApiError(404, why, "model", "model_not_found")

    def _read_common(self, fields: Fields, limits: Sequence[str], logprobs: bool) -> Asked:
        """The rest of a request."""
        asked = read_common(fields, self.settings, limits, logprobs)
        if asked.sampling.seed is not None and not self.takes_seeds:
            raise refused("seed", "this sampler takes none; leave it out", "unsupported_parameter")
        fields.finish()
        return asked

    def _in_template(self, chat: Conversation, episode: Optional[str]) -> torch.Tensor:
        """The prompt [Q] int64.

        A conversation that goes on keeps the tokens that the model wrote: only what follows them is rendered.
        """
        try:
            template = ChatTemplate(self.tokenizer, None, chat.tools, self.settings.template_options)
            known = self.recorder.continued(episode, chat)
            if known is not None:
                prompt = _after(template, chat, *known)
                if prompt is not None:
                    return prompt
            prompt = template.tokenize(template.render(chat.messages, open_turn=True), CPU)
        except Exception as error:  # of the template, or of the tokenizer
            raise refused("messages", f"the chat template does not render them: {error}") from error
        if len(prompt) == 0:
            raise refused("messages", "the chat template renders them to nothing")
        return prompt

    def _prompts(self, given: Any) -> list[torch.Tensor]:
        """A text, token ids, or a list of either."""
        one = isinstance(given, str) or (isinstance(given, list) and bool(given) and _is_id(given[0]))
        prompts = []
        for i, prompt in enumerate([given] if one else given if isinstance(given, list) else ()):
            field = "prompt" if one else f"prompt[{i}]"
            if isinstance(prompt, str):
                try:
                    prompt = self.tokenizer(prompt).input_ids
                except Exception as error:  # half a surrogate pair
                    raise refused(field, f"the tokenizer does not read it: {error}") from error
            elif not isinstance(prompt, list) or not all(map(_is_id, prompt)):
                raise refused(field, "must be a text or a list of token ids")
            if not prompt:
                raise refused(field, "has no token")
            prompts.append(torch.tensor(prompt, dtype=torch.long))
        if not prompts:
            raise refused("prompt", "must be a text, token ids, or a list of either")
        return prompts

    def _with_limit(self, asked: Asked, prompts: list[torch.Tensor], field: str) -> Asked:
        """The number of new tokens: what the client gave, or what there is room for."""
        limit, most = asked.sampling.max_new_tokens, self.settings.max_length
        longest = max(len(prompt) for prompt in prompts)
        if most is not None and longest + (limit or 1) > most:
            raise refused(
                field if limit else "messages" if field != "max_tokens" else "prompt",
                f"the prompt has {longest} tokens, and with {limit or 1} new ones more than max_length={most}",
                "context_length_exceeded",
            )
        if limit is None:
            limit = self.settings.max_new_tokens if most is None else min(self.settings.max_new_tokens, most - longest)
        return asked._replace(sampling=asked.sampling._replace(max_new_tokens=limit))

    # --- answers -------------------------------------------------------------------------------------------------

    def answer(self, call: Call, drawn: list[Drawn]) -> tuple[Reply, Callable[[], None]]:
        """The answer to a call, and what records it; `ApiError` 400 if it asked for log-probs that are not known."""
        choices: list[Choice] = []
        found: list[tuple[torch.Tensor, list[Answer]]] = []
        for prompt, each in zip(call.prompts, drawn, strict=True):
            answers = []
            logprobs = [None] * len(each.responses) if each.logprobs is None else each.logprobs
            for tokens, numbers, ended in zip(each.responses, logprobs, each.ended, strict=True):
                if call.asked.logprobs and numbers is None:
                    raise refused("logprobs", "this sampler knows none; leave it out")
                turn = read_turn(self.tokenizer, tokens, ended, call.asked.sampling.stop, call.with_calls)
                choices.append(Choice(turn, tokens, numbers if call.asked.logprobs else None))
                said = call.chat and call.chat._replace(messages=[*call.chat.messages, turn.message()])
                answers.append(Answer(tokens, numbers, turn.ended_by_token, said))
            found.append((prompt, answers))

        def record() -> None:
            for prompt, answers in found:
                self.recorder.add(call.episode, call.id, prompt, answers)

        counted = sum(map(len, call.prompts))
        reply = Reply(call.id, self.settings.model_name, choices, counted, call.chat is not None, self.tokenizer)
        return reply, record


def _after(template: ChatTemplate, chat: Conversation, tokens: torch.Tensor, last: Answer) -> Optional[torch.Tensor]:
    """The prompt [Q] that goes on after `tokens` [T]; None if the template leaves no trace of an earlier turn."""
    known = last.conversation.messages
    try:
        between = template.between(known[:-1], chat.messages[len(known) :])
    except ValueError:
        return None
    final = int(tokens[-1])
    return torch.cat((tokens, template.tokens_between(between, final, {final} if last.ended_by_token else set(), CPU)))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
