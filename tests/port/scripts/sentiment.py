"""PPO towards positive reviews, with a classifier as reward: written for TRL 0.7 and transformers 4."""

from dataclasses import dataclass, field
from typing import Optional

import torch
from datasets import load_dataset
from tqdm import tqdm
from transformers import AutoTokenizer, HfArgumentParser, pipeline
from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, set_seed
from trl.core import LengthSampler
from trl.import_utils import is_npu_available, is_xpu_available


@dataclass
class ScriptArguments:
    use_seq2seq: bool = field(default=False, metadata={"help": "an encoder-decoder model"})
    use_peft: bool = field(default=False, metadata={"help": "train an adapter"})
    text_file: Optional[str] = field(default=None, metadata={"help": "where the last responses go"})


parser = HfArgumentParser((ScriptArguments, PPOConfig))
args, ppo_config = parser.parse_args_into_dataclasses()

sent_kwargs = {"return_all_scores": True, "function_to_apply": "none", "batch_size": 16}
model_class = AutoModelForSeq2SeqLMWithValueHead if args.use_seq2seq else AutoModelForCausalLMWithValueHead


def build_dataset(config, query_dataset, shortest=2, longest=8):
    tokenizer = AutoTokenizer.from_pretrained(config.model_name, use_auth_token=False)
    tokenizer.pad_token = tokenizer.eos_token
    ds = load_dataset(query_dataset, split="train")
    ds = ds.rename_columns({"text": "review"})
    ds = ds.filter(lambda sample: len(sample["review"]) > 20, batched=False)
    sizes = LengthSampler(shortest, longest)

    def tokenize(sample):
        sample["input_ids"] = tokenizer.encode(sample["review"])[: sizes()]
        sample["query"] = tokenizer.decode(sample["input_ids"])
        return sample

    ds = ds.map(tokenize, batched=False)
    ds.set_format(type="torch")
    return ds


dataset = build_dataset(ppo_config, ppo_config.query_dataset)


def collator(data):
    return {key: [sample[key] for sample in data] for key in data[0]}


set_seed(ppo_config.seed)
ref_model, peft_config = None, None
if args.use_peft:
    from peft import LoraConfig

    peft_config = LoraConfig(r=4, lora_alpha=8, bias="none", task_type="CAUSAL_LM")
else:
    ref_model = model_class.from_pretrained(ppo_config.model_name)
model = model_class.from_pretrained(ppo_config.model_name, peft_config=peft_config)
tokenizer = AutoTokenizer.from_pretrained(ppo_config.model_name)
tokenizer.pad_token_id = tokenizer.eos_token_id

ppo_trainer = PPOTrainer(ppo_config, model, ref_model, tokenizer, dataset=dataset, data_collator=collator)

device = ppo_trainer.accelerator.device
if ppo_trainer.accelerator.num_processes == 1:
    if is_xpu_available():
        device = "xpu:0"
    elif is_npu_available():
        device = "npu:0"
    else:
        device = 0 if torch.cuda.is_available() else "cpu"
task, reward_model = ppo_config.reward_model.split(":")
sentiment_pipe = pipeline(task, model=reward_model, device=device)
if sentiment_pipe.tokenizer.pad_token_id is None:
    sentiment_pipe.tokenizer.pad_token_id = tokenizer.pad_token_id
if sentiment_pipe.model.config.pad_token_id is None:
    sentiment_pipe.model.config.pad_token_id = tokenizer.pad_token_id

generation_kwargs = {
    "min_length": -1,
    "top_k": 0.0,
    "top_p": 1.0,
    "do_sample": True,
    "pad_token_id": tokenizer.eos_token_id,
    "max_new_tokens": 8,
}

for epoch, batch in tqdm(enumerate(ppo_trainer.dataloader)):
    query_tensors = batch["input_ids"]
    response_tensors, ref_response_tensors = ppo_trainer.generate(
        query_tensors, return_prompt=False, generate_ref_response=True, **generation_kwargs
    )
    batch["response"] = tokenizer.batch_decode(response_tensors)
    batch["ref_response"] = tokenizer.batch_decode(ref_response_tensors)

    texts = [q + r for q, r in zip(batch["query"], batch["response"])]
    pipe_outputs = sentiment_pipe(texts, **sent_kwargs)
    rewards = [torch.tensor(output[1]["score"]) for output in pipe_outputs]
    ref_texts = [q + r for q, r in zip(batch["query"], batch["ref_response"])]
    ref_pipe_outputs = sentiment_pipe(ref_texts, **sent_kwargs)
    batch["ref_rewards"] = [torch.tensor(output[1]["score"]) for output in ref_pipe_outputs]
    assert {output[1]["label"] for output in pipe_outputs + ref_pipe_outputs} == {"POSITIVE"}

    stats = ppo_trainer.step(query_tensors, response_tensors, rewards)
    ppo_trainer.log_stats(stats, batch, rewards, columns_to_log=["query", "response", "ref_response", "ref_rewards"])

print("final score", stats["ppo/mean_scores"])
