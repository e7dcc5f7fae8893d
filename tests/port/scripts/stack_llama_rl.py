"""The last stage of StackLLaMA, PPO against a reward model: written for TRL 0.7, PEFT 0.8 and transformers 4."""

from dataclasses import dataclass, field
from typing import Optional

import torch
from accelerate import Accelerator
from datasets import load_dataset
from peft import LoraConfig
from tqdm import tqdm
from transformers import Adafactor, AutoTokenizer, HfArgumentParser, pipeline
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, set_seed
from trl.core import LengthSampler


@dataclass
class ScriptArguments:
    """Names as in the original."""

    model_name: Optional[str] = field(default="")
    tokenizer_name: Optional[str] = field(default="")
    reward_model_name: Optional[str] = field(default="")
    data_folder: Optional[str] = field(default="")
    learning_rate: Optional[float] = field(default=1.41e-5)
    output_max_length: Optional[int] = field(default=12)
    mini_batch_size: Optional[int] = field(default=1)
    batch_size: Optional[int] = field(default=4)
    ppo_epochs: Optional[int] = field(default=2)
    gradient_accumulation_steps: Optional[int] = field(default=2)
    adafactor: Optional[bool] = field(default=False)
    early_stopping: Optional[bool] = field(default=False)
    target_kl: Optional[float] = field(default=0.1)
    reward_baseline: Optional[float] = field(default=0.0)
    batched_gen: Optional[bool] = field(default=False)
    save_freq: Optional[int] = field(default=None)
    output_dir: Optional[str] = field(default="runs/")
    seed: Optional[int] = field(default=0)
    steps: Optional[int] = field(default=20000)
    init_kl_coef: Optional[float] = field(default=0.2)
    adap_kl_ctrl: Optional[bool] = field(default=True)
    load_in_8bit: Optional[bool] = field(default=True)


parser = HfArgumentParser(ScriptArguments)
script_args: ScriptArguments = parser.parse_args_into_dataclasses()[0]
config = PPOConfig(
    steps=script_args.steps,
    model_name=script_args.model_name,
    learning_rate=script_args.learning_rate,
    batch_size=script_args.batch_size,
    mini_batch_size=script_args.mini_batch_size,
    gradient_accumulation_steps=script_args.gradient_accumulation_steps,
    optimize_cuda_cache=True,
    early_stopping=script_args.early_stopping,
    target_kl=script_args.target_kl,
    ppo_epochs=script_args.ppo_epochs,
    seed=script_args.seed,
    init_kl_coef=script_args.init_kl_coef,
    adap_kl_ctrl=script_args.adap_kl_ctrl,
)
train_dataset = load_dataset(script_args.data_folder, data_dir="data/rl", split="train", use_auth_token=None)
original_columns = train_dataset.column_names
sent_kwargs = {
    "return_all_scores": True,
    "function_to_apply": "none",
    "batch_size": 16,
    "truncation": True,
}
tokenizer = AutoTokenizer.from_pretrained(script_args.tokenizer_name)
if getattr(tokenizer, "pad_token", None) is None:
    tokenizer.pad_token = tokenizer.eos_token


def build_dataset(tokenizer, num_proc=2):
    def preprocess_function(examples):
        new_examples = {"query": [], "input_ids": []}
        for question in examples["question"]:
            query = "Question: " + question + "\n\nAnswer: "
            tokenized_question = tokenizer(query, truncation=True)
            new_examples["query"].append(query)
            new_examples["input_ids"].append(tokenized_question["input_ids"])
        return new_examples

    ds = train_dataset.map(preprocess_function, batched=True, num_proc=num_proc, remove_columns=original_columns)
    ds = ds.filter(lambda x: len(x["input_ids"]) < 512, batched=False)
    ds.set_format(type="torch")
    return ds


def collator(data):
    return dict((key, [d[key] for d in data]) for key in data[0])


dataset = build_dataset(tokenizer)
set_seed(config.seed)
current_device = Accelerator().local_process_index
lora_config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
model = AutoModelForCausalLMWithValueHead.from_pretrained(
    config.model_name,
    load_in_8bit=script_args.load_in_8bit,
    device_map={"": current_device},
    peft_config=lora_config,
)
optimizer = None
if script_args.adafactor:
    optimizer = Adafactor(
        filter(lambda p: p.requires_grad, model.parameters()),
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
        lr=config.learning_rate,
    )
ppo_trainer = PPOTrainer(
    config,
    model,
    ref_model=None,
    tokenizer=tokenizer,
    dataset=dataset,
    data_collator=collator,
    optimizer=optimizer,
)
sentiment_pipe = pipeline(
    "sentiment-analysis",
    model=script_args.reward_model_name,
    device_map={"": current_device},
    model_kwargs={"load_in_8bit": script_args.load_in_8bit},
    tokenizer=tokenizer,
    return_token_type_ids=False,
)
if sentiment_pipe.model.config.pad_token_id is None:
    sentiment_pipe.model.config.pad_token_id = tokenizer.eos_token_id
generation_kwargs = {
    # "min_length": -1,
    "top_k": 0.0,
    "top_p": 1.0,
    "do_sample": True,
    "pad_token_id": tokenizer.pad_token_id,
    "eos_token_id": 100_000,
}
output_length_sampler = LengthSampler(6, script_args.output_max_length)

for epoch, batch in tqdm(enumerate(ppo_trainer.dataloader)):
    if epoch >= config.total_ppo_epochs:
        break
    question_tensors = batch["input_ids"]
    response_tensors = ppo_trainer.generate(
        question_tensors,
        return_prompt=False,
        length_sampler=output_length_sampler,
        **generation_kwargs,
    )
    batch["response"] = tokenizer.batch_decode(response_tensors, skip_special_tokens=True)
    texts = [q + r for q, r in zip(batch["query"], batch["response"])]
    pipe_outputs = sentiment_pipe(texts, **sent_kwargs)
    rewards = [torch.tensor(output[0]["score"] - script_args.reward_baseline) for output in pipe_outputs]
    stats = ppo_trainer.step(question_tensors, response_tensors, rewards)
    ppo_trainer.log_stats(stats, batch, rewards)
    if script_args.save_freq and epoch and epoch % script_args.save_freq == 0:
        ppo_trainer.save_pretrained(script_args.output_dir + f"step_{epoch}")
print("final score", stats["ppo/mean_scores"])
