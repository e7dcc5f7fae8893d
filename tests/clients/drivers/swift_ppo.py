"""ms-swift's PPO, as its command line runs it."""

import json
from pathlib import Path

from swift import RLHFArguments, rlhf_main

rows = [{"messages": [{"role": "user", "content": f"Name number {i}."}]} for i in range(16)]
Path("prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
rlhf_main(
    RLHFArguments(
        rlhf_type="ppo",
        model="llama",
        model_type="llama",
        template="dummy",
        reward_model=["reward-llama"],
        reward_model_type=["llama"],
        tuner_type="full",
        dataset=["prompts.jsonl"],
        output_dir="out",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_ppo_epochs=1,
        response_length=8,
        torch_dtype="float32",
        max_steps=2,
        report_to=["none"],
    )
)
