"""pykoi's supervised fine-tuning and PPO on a table of questions (`sft`, `ppo`).

Its web application is left out, and so are its reports to its makers.
"""

import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel


def module(name, **names):
    made = ModuleType(name)
    made.__dict__.update(names)
    sys.modules[name] = made


root = find_spec("pykoi").submodule_search_locations[0]
module("posthog", Posthog=lambda **_: SimpleNamespace(capture=lambda *_, **__: None))
module("pykoi", __path__=[root], __version__="0.0.11")
module("pykoi.chat", __path__=[f"{root}/chat"])
module("pykoi.rlhf", __path__=[f"{root}/rlhf"])
PreTrainedModel.hf_device_map = {"": "cpu"}  # it asks where its model is on the GPUs
LoraConfig.__hash__ = object.__hash__  # dataclasses of Python 3.11 refuse defaults without one
from pykoi.rlhf.config import RLHFConfig  # noqa: E402

with open("questions.csv", "w") as file:
    print(
        "ID,Question,Answer,Vote Status", *(f"{i},What is {i}?,It is {i}.,up" for i in range(64)), sep="\n", file=file
    )
tokenizer = AutoTokenizer.from_pretrained("llama")
policy = get_peft_model(AutoModelForCausalLM.from_pretrained("llama"), LoraConfig(r=2, task_type="CAUSAL_LM"))
judge = AutoModelForSequenceClassification.from_pretrained("reward-llama")
judge = get_peft_model(judge, LoraConfig(r=2, task_type="SEQ_CLS"))
for name, model in {"policy": policy, "judge": judge}.items():
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
settings = {
    "dataset_type": "local_csv", "dataset_name": "questions.csv", "fp16": False, "load_in_8bit": False,
    "output_dir": "out", "max_steps": 2, "total_epochs": 2, "ppo_epochs": 2, "ppo_batch_size": 4, "num_workers": None,
    "max_seq_length": 64, "output_min_length": 4, "output_max_length": 8, "gradient_accumulation_steps": 1,
    "evaluation_strategy": "no", "reward_model_path": "judge", "size_valid_set": 8,
}  # fmt: skip
if "sft" in sys.argv:
    from pykoi.rlhf.supervised_finetuning import SupervisedFinetuning

    SupervisedFinetuning(RLHFConfig(base_model_path="llama", **settings), enable_telemetry=False).train_and_save("sft")
else:
    from pykoi.rlhf.rl_finetuning import RLFinetuning

    tuning = RLFinetuning(RLHFConfig(base_model_path="policy", **settings), enable_telemetry=False)
    before = [parameter.clone() for parameter in tuning.base_model.parameters()]
    tuning.train_and_save("rl")
    moved = (not torch.equal(old, new) for old, new in zip(before, tuning.base_model.parameters(), strict=True))
    assert any(moved), "no weight moved"
