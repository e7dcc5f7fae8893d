"""The PPO of ms-swift 2.x, as its command line runs it."""

import json
from pathlib import Path

from swift.llm import RLHFArguments, rlhf_main

Path("prompts.jsonl").write_text("\n".join(json.dumps({"query": f"Name number {i}."}) for i in range(16)))
rlhf_main(
    RLHFArguments(
        rlhf_type="ppo",
        model_type="llama2-7b",
        model_id_or_path="llama",
        reward_model_type="llama2-7b",
        reward_model_id_or_path="llama",
        sft_type="full",
        dtype="fp32",
        dataset=["prompts.jsonl"],
        output_dir="out",
        batch_size=2,
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        max_new_tokens=8,
        max_steps=2,
        report_to=["none"],
    )
)
