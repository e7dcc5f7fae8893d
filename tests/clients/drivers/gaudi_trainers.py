"""optimum-habana's other trainers on a CPU: `ddpo`, `dpo`, `sft` or `reward`.

Habana's own packages are replaced by empty modules, and the parts of optimum-habana that need them by those of
accelerate and transformers that they derive from.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import torch
from accelerate import Accelerator
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)


def module(name, **names):
    made = ModuleType(name)
    made.__dict__.update(names)
    sys.modules[name] = made


def forget_device():
    """What accelerate would take for one."""
    for used in [name for name in sys.modules if name.startswith("habana_frameworks")]:
        del sys.modules[used]


class Clip:
    """In place of FusedClipNorm."""

    def __init__(self, parameters, largest):
        self.largest = largest

    def clip_norm(self, parameters):
        torch.nn.utils.clip_grad_norm_(list(parameters), self.largest)


class GaudiTrainer(Trainer):
    def __init__(self, *given, gaudi_config=None, **named):
        super().__init__(*given, **named)


module("habana_frameworks", __path__=[])
module("habana_frameworks.torch", __path__=[])
module("habana_frameworks.torch.core", mark_step=lambda *_: None)
module("habana_frameworks.torch.hpex", __path__=[])
module("habana_frameworks.torch.hpex.normalization", FusedClipNorm=Clip)
root = find_spec("optimum").submodule_search_locations[0] + "/habana"
gaudi = SimpleNamespace(use_fused_clip_norm=True, use_fused_adam=False)
module("optimum.habana", __path__=[root], GaudiConfig=SimpleNamespace, GaudiTrainer=GaudiTrainer,
       GaudiTrainingArguments=TrainingArguments)  # fmt: skip
module("optimum.habana.accelerate", GaudiAccelerator=Accelerator)
module("optimum.habana.utils", set_seed=torch.manual_seed, warn0=lambda *_, **__: None)
module("optimum.habana.trl", __path__=[f"{root}/trl"])
module("optimum.habana.trl.trainer", __path__=[f"{root}/trl/trainer"])

kind = sys.argv[1]
its = "optimum.habana.trl.trainer"
if kind == "ddpo":
    from trl import DDPOConfig

    from tests import tiny_diffusion

    pipeline = tiny_diffusion.policy()
    config = DDPOConfig(num_epochs=2, sample_num_steps=2, sample_batch_size=2, sample_num_batches_per_epoch=2,
                        train_batch_size=2, train_gradient_accumulation_steps=1, mixed_precision="no",
                        per_prompt_stat_tracking=False, project_kwargs={"project_dir": "out",
                        "automatic_checkpoint_naming": True})  # fmt: skip
    trainer = import_module(f"{its}.ddpo_trainer").GaudiDDPOTrainer(
        config,
        lambda images, prompts, metadata: (images.mean(dim=(1, 2, 3)), {}),
        lambda: ("a cat", {}),
        pipeline,
        gaudi_config=gaudi,
        use_habana=False,
    )
    trained = pipeline.unet
    forget_device()
else:
    name = "reward-gpt2" if kind == "reward" else "gpt2"
    loader = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
    trained = loader.from_pretrained(name)
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.eos_token
    forget_device()
    small = {"output_dir": "out", "max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True}
    rows = [{"prompt": f"What is {i}?", "chosen": f" It is {i}.", "rejected": " No."} for i in range(8)]
    if kind == "dpo":
        config = import_module(f"{its}.dpo_config").GaudiDPOConfig(
            max_length=64, max_prompt_length=32, remove_unused_columns=False, **small
        )
        trainer = import_module(f"{its}.dpo_trainer").GaudiDPOTrainer(
            trained, args=config, gaudi_config=gaudi, train_dataset=Dataset.from_list(rows), tokenizer=tokenizer
        )
    elif kind == "sft":
        config = import_module(f"{its}.sft_config").GaudiSFTConfig(
            dataset_text_field="text", packing=False, max_seq_length=64, **small
        )
        data = load_dataset("imdb", split="train")
        trainer = import_module(f"{its}.sft_trainer").GaudiSFTTrainer(
            trained, args=config, gaudi_config=gaudi, train_dataset=data, tokenizer=tokenizer
        )
    else:
        part = import_module(f"{its}.reward_trainer")
        pairs = []
        for row in rows:
            better, worse = tokenizer(row["prompt"] + row["chosen"]), tokenizer(row["prompt"] + row["rejected"])
            pairs.append({
                "input_ids_j": better["input_ids"], "attention_mask_j": better["attention_mask"],
                "input_ids_k": worse["input_ids"], "attention_mask_k": worse["attention_mask"],
            })  # fmt: skip
        trainer = part.GaudiRewardTrainer(
            trained,
            args=TrainingArguments(remove_unused_columns=False, **small),
            train_dataset=pairs,
            data_collator=part.RewardDataCollatorWithPadding(tokenizer),
        )
before = [parameter.clone() for parameter in trained.parameters()]
trainer.train()
assert any(not torch.equal(old, new) for old, new in zip(before, trained.parameters(), strict=True)), "no weight moved"
