"""Axolotl's PPO trainer on a table of beginnings, with the sentiment classifier of TRL's first examples."""

import torch
from axolotl.core.trainers.trl import TRLPPOTrainer
from datasets import Dataset
from transformers import AutoTokenizer, pipeline
from trl import AutoModelForCausalLMWithValueHead, PPOConfig

tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
rows = [{"query": f"Number {i} is", "input_ids": tokenizer(f"Number {i} is").input_ids} for i in range(16)]
trainer = TRLPPOTrainer(
    PPOConfig(batch_size=8, mini_batch_size=4, log_with="tensorboard", project_kwargs={"logging_dir": "logs"}),
    model,
    None,
    tokenizer,
    dataset=Dataset.from_list(rows).with_format("torch"),
    data_collator=lambda rows: {key: [row[key] for row in rows] for key in rows[0]},
)
before = [parameter.clone() for parameter in model.parameters()]
trainer.train(pipeline("sentiment-analysis", "lvwerra/distilbert-imdb"))
assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)), "no weight moved"
