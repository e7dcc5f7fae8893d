"""Times `TextEnvironment.run` in a fresh process and prints one line of JSON; see environment.py."""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
import warnings
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

warnings.filterwarnings("ignore")
PROTOCOL = ["<request>", "<tool>", "<call>", "<response>", "<submit>"]
WORDS = [f"w{i}" for i in range(64)]


def tokenizer() -> Any:
    """Words, and the protocol's tokens as words."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<end>", *PROTOCOL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\w+>|w\d+"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", padding_side="left")


class WritesCalls(LogitsProcessor):
    """Makes the model write `<request><tool>`, some words and `<call>`, whatever it would write itself.

    The number of words follows from the row's first word, so that turns differ in length and are the same for every
    library. After its call a row that is not stopped continues with words.
    """

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        asked, answered = input_ids == self.ids["<request>"], input_ids == self.ids["<response>"]
        in_call = asked.sum(dim=1) > answered.sum(dim=1)
        written = torch.where(in_call, asked.flip(1).int().argmax(dim=1) + 1, 0)
        first = input_ids.gather(1, (input_ids != self.ids["<pad>"]).int().argmax(dim=1, keepdim=True)).flatten()
        words = 4 + first % 16
        token = torch.full_like(first, self.ids["w2"])
        for word, here in (
            ("<call>", written == 2 + words),
            ("w1", written < 2 + words),
            ("<tool>", written == 1),
            ("<request>", written == 0),
        ):
            token[here] = self.ids[word]
        return torch.full_like(scores, -float("inf")).scatter(1, token.unsqueeze(1), 0.0)


def main() -> None:
    job = json.loads(sys.argv[1])
    case = job["case"]
    torch.set_num_threads(job.get("threads", 2))
    torch.manual_seed(0)
    library = importlib.import_module(job["library"])
    words = tokenizer()
    ids = {word: words.convert_tokens_to_ids(word) for word in ["<pad>", *PROTOCOL, "w1", "w2"]}
    config = GPT2Config(vocab_size=len(words), n_layer=case["layers"], n_embd=case["width"], n_head=4, n_positions=512)
    model = library.AutoModelForCausalLMWithValueHead.from_pretrained(GPT2LMHeadModel(config))

    def tool(query: str) -> str:
        time.sleep(case["tool_seconds"])
        return " ".join(re.findall(r"w\d+", query))

    environment = library.TextEnvironment(
        model,
        words,
        {"tool": tool},
        lambda texts: [torch.tensor(float(len(text))) for text in texts],
        "",
        max_turns=case["turns"],
        generation_kwargs={
            "do_sample": True,
            "top_k": 0,
            "max_new_tokens": 32,
            "pad_token_id": ids["<pad>"],
            "eos_token_id": -1,
            "logits_processor": LogitsProcessorList([WritesCalls(ids)]),
        },
    )
    low, high = case["query_words"]
    tasks = [" ".join(WORDS[(i + k) % 64] for k in range(low + i % (high - low + 1))) for i in range(case["episodes"])]
    environment.run(tasks[:2])
    seconds, processor_seconds, written = [], [], 0
    for _ in range(job["runs"]):
        start, processor_start = time.perf_counter(), time.process_time()
        _, _, masks, _, histories = environment.run(tasks)
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
        written = sum(int(mask.sum()) for mask in masks)
        calls = [history.text.count("<response>") for history in histories]
        if calls != [case["turns"]] * case["episodes"]:
            raise SystemExit(f"episodes whose number of tool calls is not {case['turns']}: {calls}")
    result = {"seconds": seconds, "processor_seconds": processor_seconds, "written_tokens": written}
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
