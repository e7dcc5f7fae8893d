"""One base model with two adapters, the policy and its reward: written for TRL 0.7, PEFT 0.8 and transformers 4."""

from dataclasses import dataclass, field
from typing import Optional

import torch
from datasets import load_dataset
from peft import LoraConfig
from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, is_xpu_available
from trl.core import LengthSampler


@dataclass
class ScriptArguments:
    model_name: str
    rm_adapter: str
    dataset_name: str
    log_with: Optional[str] = field(default=None)
    load_in_4bit: bool = field(default=False)
    use_score_scaling: bool = field(default=True)
    use_score_norm: bool = field(default=True)
    score_clip: Optional[float] = field(default=None)


script_args = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()[0]


def prepare(tokenizer):
    dataset = load_dataset(script_args.dataset_name, split="train[:50%]")
    length = LengthSampler(4, 10)

    def tokenize(example):
        example["input_ids"] = tokenizer.encode(example["text"])[: length()]
        example["query"] = tokenizer.decode(example["input_ids"])
        return example

    dataset = dataset.map(tokenize, batched=False)
    dataset.set_format("torch")
    return dataset


lora_config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
model = AutoModelForCausalLMWithValueHead.from_pretrained(
    script_args.model_name,
    device_map={"": "xpu:0"} if is_xpu_available() else {"": 0},
    load_in_4bit=script_args.load_in_4bit,
    peft_config=lora_config,
    reward_adapter=script_args.rm_adapter,
)
tokenizer = AutoTokenizer.from_pretrained(script_args.model_name, use_auth_token=None)
tokenizer.pad_token = tokenizer.eos_token
config = PPOConfig(
    model_name=script_args.model_name,
    log_with=script_args.log_with,
    learning_rate=1e-5,
    batch_size=4,
    mini_batch_size=2,
    gradient_accumulation_steps=2,
    optimize_cuda_cache=True,
    seed=5,
    use_score_scaling=script_args.use_score_scaling,
    use_score_norm=script_args.use_score_norm,
    score_clip=script_args.score_clip,
)
ppo_trainer = PPOTrainer(
    config,
    model,
    ref_model=None,
    tokenizer=tokenizer,
    dataset=prepare(tokenizer),
    data_collator=lambda data: {key: [sample[key] for sample in data] for key in data[0]},
)
generation_kwargs = {
    "top_k": 0.0,
    "top_p": 0.9,
    "do_sample": True,
    "pad_token_id": tokenizer.pad_token_id,
    "max_new_tokens": 6,
}
for epoch, batch in tqdm(enumerate(ppo_trainer.dataloader)):
    question_tensors = batch["input_ids"]
    response_tensors = ppo_trainer.generate(question_tensors, return_prompt=False, **generation_kwargs)
    batch["response"] = tokenizer.batch_decode(response_tensors, skip_special_tokens=True)
    texts = [q + r for q, r in zip(batch["query"], batch["response"])]
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(ppo_trainer.accelerator.device)
    raw_rewards = ppo_trainer.accelerator.unwrap_model(ppo_trainer.model).compute_reward_score(**inputs)
    rewards = [raw_rewards[i, -1, 1] for i in range(len(raw_rewards))]
    stats = ppo_trainer.step(question_tensors, response_tensors, rewards)
    ppo_trainer.log_stats(stats, batch, rewards)
    assert torch.isfinite(torch.tensor(stats["ppo/mean_scores"]))
print("final score", stats["ppo/mean_scores"])
