"""PPO for an encoder-decoder model, scored by the scores of a classifier: written for TRL 0.7 and transformers 4."""

import sys

import torch
import trl
from datasets import load_dataset
from transformers import AutoTokenizer, pipeline
from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer
from trl.core import LengthSampler

model_name, reward_model, data_folder = sys.argv[1:]
config = PPOConfig(
    model_name=model_name,
    learning_rate=5e-5,
    batch_size=4,
    mini_batch_size=2,
    forward_batch_size=None,
    optimize_cuda_cache=True,
)
sent_kwargs = dict(return_all_scores=True, function_to_apply="none", batch_size=4)

tokenizer = AutoTokenizer.from_pretrained(config.model_name, use_auth_token=None)


def tokenize(sample):
    sample["input_ids"] = tokenizer.encode("continue: " + sample["text"])[:12] + [tokenizer.eos_token_id]
    sample["query"] = tokenizer.decode(sample["input_ids"])
    return sample


dataset = load_dataset(data_folder, split="train", use_auth_token=None).map(tokenize, batched=False)
dataset.set_format(type="torch")
model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(config.model_name, use_auth_token=None)
ref_model = trl.create_reference_model(model)
trl.core.set_seed(3)
ppo_trainer = PPOTrainer(
    config,
    model,
    ref_model,
    tokenizer,
    dataset=dataset,
    data_collator=lambda data: dict((key, [sample[key] for sample in data]) for key in data[0]),
)
sentiment_pipe = pipeline("sentiment-analysis", reward_model, device=ppo_trainer.accelerator.device, framework="pt")
assert [entry["label"] for entry in sentiment_pipe("a film", **sent_kwargs)[0]] == ["NEGATIVE", "POSITIVE"]

generation_kwargs = {"top_k": 0.0, "top_p": 1.0, "do_sample": True, "eos_token_id": -1}
output_size = LengthSampler(4, 8)
for batch in ppo_trainer.dataloader:
    query_tensors = batch["input_ids"]
    generation_kwargs["max_new_tokens"] = output_size()
    generation_kwargs["min_length"] = -1
    response_tensors = ppo_trainer.generate(query_tensors, **generation_kwargs)
    batch["response"] = [tokenizer.decode(response[1:].squeeze()) for response in response_tensors]
    texts = [q + r for q, r in zip(batch["query"], batch["response"])]
    rewards = [torch.tensor(output[1]["score"]).to("cpu") for output in sentiment_pipe(texts, **sent_kwargs)]
    stats = ppo_trainer.step(query_tensors, response_tensors, rewards)
    ppo_trainer.log_stats(stats, batch, rewards)
print("final score", stats["ppo/mean_scores"])
