"""A model that learns to call a calculator: written for TRL 0.7 and the tools of transformers 4."""

import re
import sys

import numpy as np
import torch
from transformers import AutoTokenizer, load_tool
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, TextEnvironment

model_id, tool_folder = sys.argv[1:]


def generate_data(n):
    """Sums, and what they make."""
    tasks, answers = [], []
    for _ in range(n):
        a, b = np.random.randint(0, 50, size=2)
        tasks.append(f"\n\nWhat is {a} + {b}?")
        answers.append(a + b)
    return tasks, answers


def exact_match_reward(responses, answers=None):
    """1 where the number that was handed in is right."""
    rewards = []
    for response, answer in zip(responses, answers):
        match = re.search(r"Result\s*=\s*(-?\d+)\s*<submit>", response)
        rewards.append(torch.tensor(float(match is not None and int(match.group(1)) == answer)))
    return rewards


model = AutoModelForCausalLMWithValueHead.from_pretrained(model_id)
model_ref = AutoModelForCausalLMWithValueHead.from_pretrained(model_id)
tokenizer = AutoTokenizer.from_pretrained(model_id)
tokenizer.pad_token = tokenizer.eos_token

prompt = """What is 13 + 3?
<request><SimpleCalculatorTool>13+3<call>16<response>
Result = 16<submit>"""

generation_kwargs = {
    "min_length": -1,
    "top_k": 0.0,
    "top_p": 1.0,
    "do_sample": True,
    "pad_token_id": tokenizer.eos_token_id,
    "eos_token_id": -1,
    "max_new_tokens": 8,
}
ppo_config = PPOConfig(batch_size=4, learning_rate=1.41e-5, mini_batch_size=2, log_with=None)
ppo_trainer = PPOTrainer(ppo_config, model, model_ref, tokenizer)

tool = load_tool(tool_folder)
assert tool("3 + 4") == "7"
text_env = TextEnvironment(
    model,
    tokenizer,
    {"SimpleCalculatorTool": tool},
    exact_match_reward,
    prompt,
    generation_kwargs=generation_kwargs,
)
for _step in range(2):
    tasks, answers = generate_data(ppo_config.batch_size)
    queries, responses, masks, rewards, histories = text_env.run(tasks, answers=answers)
    train_stats = ppo_trainer.step(queries, responses, rewards, masks)
    texts = {
        "query": [tokenizer.decode(query) for query in queries],
        "response": [tokenizer.decode(response) for response in responses],
        "answer": [str(answer) for answer in answers],
    }
    ppo_trainer.log_stats(train_stats, texts, rewards)
ppo_trainer.save_pretrained("tuned-calculator")
print("final score", train_stats["ppo/mean_scores"])
