"""LlamaGym's agent of its README, on Gymnasium's blackjack; models of chat answer "[/INST]"-wise, the small one too."""

import re

import gymnasium
import torch
from llamagym import Agent
from transformers import AutoTokenizer
from trl import AutoModelForCausalLMWithValueHead


class Player(Agent):
    def get_system_prompt(self):
        return "You play blackjack. Answer with 0 to stay or 1 to hit."

    def format_observation(self, observation):
        return f"You hold {observation[0]}, the dealer shows {observation[1]}."

    def extract_action(self, response):
        said = re.findall(r"[01]", response)
        return int(said[0]) if said else len(response) % 2


tokenizer = AutoTokenizer.from_pretrained("llama")
tokenizer.chat_template = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}[INST] {{ message['content'] }} [/INST] {% endif %}{% endfor %}"
)
model = AutoModelForCausalLMWithValueHead.from_pretrained("llama")
settings = {"max_new_tokens": 8, "do_sample": True, "top_p": 0.6, "top_k": 0, "temperature": 0.9}
agent = Player(model, tokenizer, "cpu", settings, {"batch_size": 4, "mini_batch_size": 2})
before = [parameter.clone() for parameter in model.parameters()]
world = gymnasium.make("Blackjack-v1")
steps = 0
for episode in range(16):
    observation, _ = world.reset(seed=episode)
    done = False
    while not done:
        observation, reward, terminated, truncated, _ = world.step(agent.act(observation))
        agent.assign_reward(reward)
        done = terminated or truncated
    statistics = agent.terminate_episode()
    if statistics:
        steps += 1
        print("KL", statistics["objective/kl"], "score", statistics["ppo/mean_scores"])
assert steps, "no step was made"
assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)), "no weight moved"
