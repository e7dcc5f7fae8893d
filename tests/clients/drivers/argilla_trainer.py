"""Argilla's trainer on records of its own: `ppo`, `sft`, `rm` or `dpo`."""

import sys

import argilla
from argilla.feedback import ArgillaTrainer, FeedbackDataset, FeedbackRecord, TextField, TextQuestion, TrainingTask
from transformers import AutoTokenizer, pipeline
from trl import PPOConfig

kind = sys.argv[1]
records = [
    FeedbackRecord(
        fields={"instruction": f"What is {i}?", "good": f"It is {i}.", "bad": "No."},
        responses=[{"values": {"answer": {"value": f"It is {i}."}}}],
    )
    for i in range(32)
]
dataset = FeedbackDataset(
    fields=[TextField(name=name) for name in ("instruction", "good", "bad")],
    questions=[TextQuestion(name="answer", title="Answer")],
)
dataset.add_records(records)
task = {
    "ppo": lambda: TrainingTask.for_proximal_policy_optimization(lambda sample: sample["instruction"]),
    "sft": lambda: TrainingTask.for_supervised_fine_tuning(lambda sample: f"{sample['instruction']} {sample['good']}"),
    "rm": lambda: TrainingTask.for_reward_modeling(lambda sample: (sample["good"], sample["bad"])),
    "dpo": lambda: TrainingTask.for_direct_preference_optimization(
        lambda sample: (sample["instruction"], sample["good"], sample["bad"])
    ),
}[kind]()
name = "reward-gpt2" if kind == "rm" else "gpt2"
trainer = ArgillaTrainer(dataset=dataset, task=task, framework="trl", model=name, train_size=0.75)
if kind == "ppo":
    trainer.update_config(
        config=PPOConfig(batch_size=8, mini_batch_size=4),
        reward_model=pipeline("sentiment-analysis", model="lvwerra/distilbert-imdb"),
        length_sampler_kwargs={"min_value": 4, "max_value": 8},
        generation_kwargs={"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True},
    )
else:
    trainer.update_config(max_steps=2, per_device_train_batch_size=2, report_to="none", save_strategy="no")
trainer.train("out")
AutoTokenizer.from_pretrained("out")
print(argilla.__version__)
