"""Chat templates written out, in the manner of today's models, and a byte tokenizer that has their special tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

HERMES = """
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{% endif %}
{{- '<tools>' }}{% for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}{{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' or message.role == 'assistant' %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""As Qwen 2.5 and Hermes: replies of one turn share a message of the user."""

LLAMA3 = """
{{- bos_token }}
{%- for message in messages %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'user' and loop.index0 < 2 and tools %}
{{- 'Functions:\\n' }}{% for tool in tools %}{{- tool | tojson(indent=2) }}{{- '\\n\\n' }}{% endfor %}{% endif %}
{%- if message.role == 'tool' %}{{- message.content | tojson }}{% else %}{{- message.content | trim }}{% endif %}
{{- '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
"""As Llama 3.1: contents are trimmed, replies are JSON strings."""

THINKING = """
{%- set last = namespace(user=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > last.user and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- content + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}
"""
"""As Qwen 3: thoughts of earlier turns are stripped, and the next turn begins inside of a thought."""

REWRITING = """
{%- for message in messages %}
{%- if message.role == 'assistant' and not loop.last %}
{{- '<|im_start|>assistant\\n[earlier turn left out]<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""Nothing of an earlier turn is left."""

STRICT = """
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' and not messages[loop.index0 - 1].tool_calls %}
{{- raise_exception('a tool message needs a call before it') }}{% endif %}
{%- if message.tool_call_id | length != 9 %}{{- raise_exception('ids have nine letters') }}{% endif %}
{{- '[TOOL_RESULTS]' + ({'content': message.content, 'call_id': message.tool_call_id} | tojson) + '[/TOOL_RESULTS]' }}
{%- elif message.tool_calls %}{{- '[TOOL_CALLS][' }}{% for call in message.tool_calls %}
{{- ({'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson) }}
{%- if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}{{- ']' + eos_token }}
{%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}
{%- else %}{{- '[INST]' + message.content + '[/INST]' }}{% endif %}{% endfor %}
"""
"""As Mistral's: it raises where messages do not fit together, and knows no beginning of a turn."""


class Format(NamedTuple):
    """`call`: how a model of this kind writes a call with the JSON `{}`; `between`: calls of one turn."""

    template: str
    end: str
    call: str
    between: str = ""
    others: tuple[str, ...] = ()


IM = ("<|im_start|>", "<tools>", "</tools>")
FORMATS = {
    "hermes": Format(HERMES, "<|im_end|>", "<tool_call>\n{}\n</tool_call>", "\n", IM),
    "llama3": Format(LLAMA3, "<|eot_id|>", "{}", "; ", ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")),
    "thinking": Format(THINKING, "<|im_end|>", "hm</think><tool_call>{}</tool_call>", "", IM),
    "rewriting": Format(REWRITING, "<|im_end|>", "<tool_call>{}</tool_call>", "", IM),
    "strict": Format(
        STRICT, "</s>", "[TOOL_CALLS][{}]", "", ("[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
    ),
}


def chat_tokenizer(name: str) -> Any:
    """One token per byte and per special token; id 1 ends a turn, `<s>` (2) is put in front of every plain text."""
    kind = FORMATS[name]
    special = ["<pad>", kind.end, "<s>", *kind.others]
    vocabulary = {token: i for i, token in enumerate(special)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(character, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=kind.end, pad_token="<pad>")
    fast.chat_template = kind.template
    return fast
