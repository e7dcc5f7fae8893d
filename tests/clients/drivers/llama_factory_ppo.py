"""LLaMA-Factory's PPO with a reward model in a folder: as its command line runs it, or (`trainer`) its part alone.

Its name was LLMTuner before.
"""

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

sys.modules.setdefault("torchaudio", ModuleType("torchaudio"))  # it reads no sound here
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

model = AutoModelForCausalLM.from_pretrained("llama")
model.save_pretrained("reward")
AutoTokenizer.from_pretrained("llama").save_pretrained("reward")
save_file(
    {"v_head.summary.weight": torch.randn(1, model.config.hidden_size), "v_head.summary.bias": torch.zeros(1)},
    "reward/value_head.safetensors",
)
Path("dataset_info.json").write_text(json.dumps({"instructions": {"file_name": "instructions/train.jsonl"}}))

settings = {
    "stage": "ppo",
    "do_train": True,
    "model_name_or_path": "llama",
    "reward_model": "reward",
    "reward_model_type": "full",
    "finetuning_type": "lora" if "lora" in sys.argv else "full",
    "template": "alpaca",
    "dataset": "instructions",
    "dataset_dir": ".",
    "cutoff_len": 128,
    "output_dir": "out",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_samples": 12,
    "num_train_epochs": 1,
    "max_new_tokens": 8,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": "none",
    "plot_loss": True,
    "disable_gradient_checkpointing": True,  # its own function for that does not fit transformers 5.23
}
package = "llamafactory" if find_spec("llamafactory") else "llmtuner"
if package == "llmtuner":
    settings["low_cpu_mem_usage"] = False  # it reads a device_map that only a GPU gets
if "trainer" in sys.argv:
    model, data, training, finetuning, generating = import_module(f"{package}.hparams").get_train_args(settings)
    import_module(f"{package}.train.ppo.workflow").run_ppo(model, data, training, finetuning, generating)
else:
    import_module(f"{package}.train.tuner").run_exp(settings)
assert any(Path("out").glob("*.safetensors")), "nothing was saved"
