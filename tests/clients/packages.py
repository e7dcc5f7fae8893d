"""Clients that are packages, and what is run of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.running import Program

DRIVERS = Path(__file__).parent / "drivers"


@dataclass
class Client:
    """A package, or a repository of programs.

    Attributes:
        requirements: arguments of `pip install`, one call each. Most pin versions of other packages that are years old;
            it is their code on today's packages that is tried, so they are installed without what they require, and
            what they import is named
        clone: folder below that of `--clones`; None: the programs are in `drivers/`
    """

    name: str
    version: str
    programs: Sequence[Program]
    requirements: Sequence[str] = field(default_factory=tuple)
    clone: str | None = None

    @property
    def environment(self) -> str:
        """A name for what is installed: TRL's releases share theirs."""
        return self.name.split()[0] if self.version == "examples" else f"{self.name}-{self.version}"

    def text(self, program: Program, clones: Path | None) -> Path | None:
        """Where the program is; None without a clone that it needs."""
        if self.clone is None:
            return DRIVERS / program.path
        return None if clones is None else clones / self.clone / program.path


RECIPE = """model_name_or_path: ./llama
torch_dtype: float32
dataset_mixer:
  ultrafeedback: 1.0
dataset_splits: [train_{part}, test_{part}]
preprocessing_num_workers: 1
bf16: false
do_eval: true
evaluation_strategy: steps
eval_steps: 1
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
logging_steps: 1
max_steps: 2
output_dir: out
per_device_train_batch_size: 2
per_device_eval_batch_size: 8
report_to: [none]
save_strategy: "no"
warmup_ratio: 0.1
"""
"""As alignment-handbook's own, with small numbers."""
DPO = """beta: 0.1
max_length: 128
max_prompt_length: 64
"""

GAUDI = [
    Program("gaudi_ppo.py", release="0.9.6"),
    *(Program("gaudi_trainers.py", [kind], "0.9.6", shown=[kind]) for kind in ("ddpo", "dpo", "sft", "reward")),
]
SWIFT = (
    "aiohttp modelscope addict attrdict binpacking dacite oss2 rouge einops transformers-stream-generator pandas jieba "
    "nltk"
)
"""What ms-swift imports."""

CLIENTS = [
    Client(
        "llamafactory",
        "0.9.5",
        [
            Program("llama_factory_ppo.py", words, "0.9.6", {"DISABLE_VERSION_CHECK": "1"}, shown=words)
            for words in ([], ["trainer"], ["trainer", "lora"])
        ],
        ["--no-deps llamafactory==0.9.5", "omegaconf fire einops sentencepiece", "--no-deps modelscope"],
    ),
    Client(
        "llamafactory",
        "0.8.3",
        [
            Program("llama_factory_ppo.py", words, "0.9.6", {"DISABLE_VERSION_CHECK": "1"}, shown=words)
            for words in ([], ["lora"])
        ],
        ["--no-deps llamafactory==0.8.3", "fire einops sentencepiece tiktoken -c constraints.txt"],
    ),
    Client(
        "llmtuner",
        "0.7.1",
        [
            Program("llama_factory_ppo.py", words, "0.8.6", {"DISABLE_VERSION_CHECK": "1"}, shown=words)
            for words in ([], ["lora"])
        ],
        ["--no-deps llmtuner==0.7.1", "fire einops sentencepiece gradio sse-starlette -c constraints.txt"],
    ),
    Client(
        "llamagym",
        "0.1.1",
        [Program("llamagym_blackjack.py", release="0.7.11")],
        ["--no-deps llamagym==0.1.1"],
    ),
    Client(
        "pykoi",
        "0.0.11",
        [Program("pykoi_rlhf.py", [kind], "0.7.4", shown=[kind]) for kind in ("sft", "ppo")],
        ["--no-deps pykoi==0.0.11", "pandas scikit-learn nvidia-ml-py -c constraints.txt"],
    ),
    Client(
        "argilla",
        "1.29.1",
        [Program("argilla_trainer.py", [kind], "0.7.11", shown=[kind]) for kind in ("ppo", "sft", "rm", "dpo")],
        [
            "--no-deps argilla==1.29.1",
            "httpx==0.26 deprecated backoff monotonic typer pandas scikit-learn",
        ],
    ),
    Client(
        "axolotl",
        "0.6.0",
        [Program("axolotl_ppo.py", release="0.11.4")],
        ["--no-deps axolotl==0.6.0"],
    ),
    Client(
        "autotrain-advanced",
        "0.8.36",
        [Program("autotrain_llm.py", [kind], "0.13.0", shown=[kind]) for kind in ("sft", "dpo", "reward")],
        ["--no-deps autotrain-advanced==0.8.36", "loguru -c constraints.txt"],
    ),
    Client(
        "rewardbench",
        "0.1.4",
        [Program("rewardbench_value_head.py", release="0.11.4")],
        ["--no-deps rewardbench==0.1.4", "fschat tiktoken sentencepiece einops -c constraints.txt"],
    ),
    Client(
        "optimum-habana",
        "1.21.2",
        GAUDI[:2],
        ["--no-deps optimum-habana==1.21.2 optimum==2.0.0"],
    ),
    Client(
        "optimum-habana",
        "1.15.0",
        GAUDI,
        ["--no-deps optimum-habana==1.15.0 optimum==1.23.3"],
    ),
    Client(
        "verl",
        "0.9.1",
        [Program("verl_value_head.py", release="0.9.6")],
        ["--no-deps verl==0.9.1", "tensordict ray codetiming hydra-core pybind11 torchdata -c constraints.txt"],
    ),
    Client(
        "ms-swift",
        "4.6.0",
        [Program("swift_ppo.py", release="0.26.2")],
        [
            "--no-deps ms-swift==4.6.0",
            f"-c constraints.txt {SWIFT} json-repair simplejson zstandard fastapi cpm-kernels tiktoken",
        ],
    ),
    Client(
        "ms-swift",
        "2.6.1",
        [Program("swift_2_ppo.py", release="0.11.4")],
        ["--no-deps ms-swift==2.6.1", f"-c constraints.txt {SWIFT}"],
    ),
    Client(
        "alignment-handbook",
        "0.2.0",
        [
            Program("scripts/run_dpo.py", ["dpo.yaml"], "0.9.6", files={"dpo.yaml": RECIPE.format(part="prefs") + DPO}),
            Program("scripts/run_sft.py", ["sft.yaml"], "0.9.6", files={"sft.yaml": RECIPE.format(part="sft")}),
        ],
        ["--no-deps alignment-handbook==0.2.0"],
        "alignment-handbook/v0.2.0",
    ),
    Client(
        "alignment-handbook",
        "0.3.0",
        [
            Program("scripts/run_dpo.py", ["dpo.yaml"], "0.9.6", files={"dpo.yaml": RECIPE.format(part="prefs") + DPO}),
            Program("scripts/run_sft.py", ["sft.yaml"], "0.9.6", files={"sft.yaml": RECIPE.format(part="sft")}),
            Program("scripts/run_orpo.py", ["orpo.yaml"], "0.9.6", files={"orpo.yaml": RECIPE.format(part="prefs")}),
        ],
        ["--no-deps alignment-handbook==0.3.0"],
        "alignment-handbook/v0.3.0",
    ),
    Client(
        "h2o-llmstudio",
        "1.4.0",
        [Program("text_rlhf_language_modeling_model.py", untried="its RLHF imports nothing of TRL, and PyPI has no "
                 "package of it")],
    ),
]  # fmt: skip
