"""optimum-habana's GaudiPPOTrainer on a CPU: its own constructor and `step`, from the parts of TRL's.

Habana's own packages, and the parts of optimum-habana that need them, are replaced by empty modules.
"""

import sys
from contextlib import nullcontext
from importlib.util import find_spec
from types import ModuleType

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import AutoModelForCausalLMWithValueHead


def module(name, **names):
    made = ModuleType(name)
    made.__dict__.update(names)
    sys.modules[name] = made
    return made


habana = module("habana_frameworks", __path__=[])
habana.torch = module("habana_frameworks.torch", __path__=[])
habana.torch.core = module("habana_frameworks.torch.core", mark_step=lambda *_: None)


class Graph:
    """In place of a graph of the device: what it captures runs, and the next mini-batch captures anew."""

    def capture_begin(self): ...

    def capture_end(self):
        sys.modules[GaudiPPOTrainer.__module__]._recorded_graph = None


habana.torch.hpu = module(
    "habana_frameworks.torch.hpu", HPUGraph=Graph, default_stream=lambda: None, stream=lambda _: nullcontext()
)


class Clock:
    """In place of HabanaGenerationTime."""

    last_duration = 0.0

    def start(self): ...

    def step(self): ...

    def total_time(self):
        return 0.0


root = find_spec("optimum").submodule_search_locations[0] + "/habana"
module("optimum.habana", __path__=[root])
module("optimum.habana.utils", HabanaGenerationTime=Clock, set_seed=torch.manual_seed, warn0=lambda *_, **__: None)
module("optimum.habana.trl", __path__=[f"{root}/trl"])
trainers = module("optimum.habana.trl.trainer", __path__=[f"{root}/trl/trainer"])
from optimum.habana.trl.trainer.ppo_config import GaudiPPOConfig  # noqa: E402

trainers.GaudiPPOConfig = GaudiPPOConfig
from optimum.habana.trl.trainer.ppo_trainer import GaudiPPOTrainer  # noqa: E402

tokenizer = AutoTokenizer.from_pretrained("gpt2")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
rows = [{"query": f"Number {i} is", "input_ids": tokenizer(f"Number {i} is").input_ids} for i in range(16)]
data = Dataset.from_list(rows).with_format("torch")
config = GaudiPPOConfig(
    batch_size=8,
    mini_batch_size=4,
    use_habana=False,
    accelerator_kwargs={"cpu": True},
    pad_max_len=32,
    pad_max_input_len=16,
)
trainer = GaudiPPOTrainer(
    config, model, None, tokenizer, dataset=data, data_collator=lambda rows: {k: [r[k] for r in rows] for k in rows[0]}
)
before = [parameter.clone() for parameter in model.parameters()]
for batch in trainer.dataloader:
    queries = list(batch["input_ids"])
    responses = trainer.generate(queries, return_prompt=False, max_new_tokens=8, do_sample=True)
    statistics = trainer.step(queries, responses, [torch.tensor(float(i)) for i in range(8)])
    trainer.log_stats(statistics, {"query": batch["query"], "response": [""] * 8}, [torch.tensor(1.0)] * 8)
    print("first KL", statistics["objective/kl"])
assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)), "no weight moved"
