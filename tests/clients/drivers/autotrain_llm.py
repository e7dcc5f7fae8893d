"""AutoTrain's fine-tuning of language models: `sft`, `dpo` or `reward`."""

import json
import sys
from importlib import import_module
from pathlib import Path

from autotrain.trainers.clm.params import LLMTrainingParams

rows = [
    {"text": f"What is {i}? It is {i}.", "prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": " No."}
    for i in range(8)
]
Path("data").mkdir(exist_ok=True)
for split in ("train", "validation"):
    Path(f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
kind = sys.argv[1]
import_module(f"autotrain.trainers.clm.train_clm_{kind}").train(
    LLMTrainingParams(
        model="llama", project_name="out", data_path="data", train_split="train", trainer=kind,
        valid_split=None if kind == "reward" else "validation",
        text_column="chosen" if kind in ("dpo", "reward") else "text", rejected_text_column="rejected",
        prompt_text_column="prompt", block_size=64, model_max_length=128, max_prompt_length=32, epochs=1, batch_size=2,
        gradient_accumulation=1, log="none", mixed_precision=None, auto_find_batch_size=False, logging_steps=1,
    )
)  # fmt: skip
assert any(Path("out").glob("*.safetensors")), "nothing was saved"
