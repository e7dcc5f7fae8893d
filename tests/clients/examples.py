"""TRL's own examples: scripts, research projects and notebooks of four releases.

Its archives on PyPI leave out `examples/`, so they are read from a clone of its repository. Arguments make the runs
small; nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.clients.packages import Client
from tests.clients.running import Program

RELEASES = ("0.4.7", "0.7.11", "0.9.6", "0.11.4")

SMALL = ("--batch_size", "8", "--mini_batch_size", "4")
SMALL_PPO = ("--model_name", "gpt2", "--query_dataset", "stanfordnlp/imdb", *SMALL)
TRAINING = ("--output_dir", "out", "--per_device_train_batch_size", "2", "--max_steps", "2", "--report_to", "none",
            "--logging_steps", "1")  # fmt: skip
ONLINE = ("--output_dir", "out", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1",
          "--num_mini_batches", "1", "--total_episodes", "4", "--response_length", "8", "--report_to", "none",
          "--model_name_or_path", "EleutherAI/pythia-160m", "--sft_model_path", "EleutherAI/pythia-160m",
          "--reward_model_path", "reward-gpt2", "--local_rollout_forward_batch_size", "2",
          "--num_sample_generations", "0")  # fmt: skip
STACK_SFT = ("--model_path", "llama", "--size_valid_set", "8", "--seq_length", "64", "--max_steps", "2", "--batch_size",
             "2", "--streaming", "--shuffle_buffer", "8", "--eval_freq", "2")  # fmt: skip
STACK_REWARD = ("--model_name", "gpt2", "--train_subset", "8", "--eval_subset", "4", "--bf16", "False",
                "--per_device_train_batch_size", "2")  # fmt: skip
STACK_RL = ("--model_name", "llama", "--tokenizer_name", "llama", "--reward_model_name", "reward-llama", *SMALL,
            "--gradient_accumulation_steps", "1", "--output_max_length", "40", "--batched_gen", "True")  # fmt: skip
LLAMA_2_SFT = (
    "--output_dir", "out", "--max_steps", "2", "--size_valid_set", "8", "--seq_length", "64", "--bf16", "False",
    "--shuffle_buffer", "8", "--report_to", "none",
)  # fmt: skip
MERGE = ("--adapter_model_name", "adapter", "--base_model_name", "huggyllama/llama-7b", "--output_name", "merged")
TOOLS = ("--max_new_tokens", "8", "--gradient_accumulation_steps", "1")
EDITS = {
    "gpt2-sentiment.ipynb": [("learning_rate=1.41e-5,", "learning_rate=1.41e-5, batch_size=8, mini_batch_size=4,")],
    "gpt2-sentiment-control.ipynb": [
        ("learning_rate=1.41e-5,", "learning_rate=1.41e-5, batch_size=8, mini_batch_size=4,")
    ],
    "best_of_n.ipynb": [(".cuda()", "")],
    "gpt-neo-1b_peft.py": [("batch_size=64,", "batch_size=8,"), ('device_map="balanced",', ""),
                           ('max_memory={0: "800MB", 1: "800MB"},', "")],
    "gpt-j-6b-toxicity.py": [("num_shared_layers=20", "num_shared_layers=1")],
    "rl_training.py": [("range(100000)", "range(24)")],
    "dpo_llama2.py": [("bf16=True", "bf16=False")],
    "calculator.py": [("mini_batch_size=64", "mini_batch_size=2"), ("batch_size=256", "batch_size=4"),
                      ("range(100)", "range(1)")],
}  # fmt: skip
"""Sizes that are no arguments, and what asks for a GPU."""
MENDS = {
    "gpt2-sentiment-control.ipynb": [
        ('zip(logs[\\"env/reward_dist\\"], task_list)', "zip(map(float, rewards), task_list)")
    ],
    "calculator.py": [('columns_to_log=["query", "response", "answer"]', 'columns_to_log=["query", "response"]')],
}
"""What a program does not have on its own release, either: an entry of `logs`, a column of the batch."""
MENDS_OF_0_11_4 = {"dpo_llama2.py": [("num_proc=script_args.num_proc", "num_proc=1")]}


STACK_LLAMA = "research_projects/stack_llama/scripts"
RESEARCH = "research_projects"


def _program(path: str, arguments: Sequence[str], release: str) -> Program:
    name = path.rpartition("/")[2]
    shown = [word for word in ("--use_peft", "--use_seq2seq") if word in arguments]
    mends = {**MENDS, **(MENDS_OF_0_11_4 if release == "0.11.4" else {})}
    return Program(path, arguments, release, edits=EDITS.get(name, ()), mends=mends.get(name, ()), shown=shown)


def _of_0_4_7() -> list[Program]:
    release, sentiment, stack = "0.5.0", "sentiment/scripts", "stack_llama/scripts"
    pairs = (
        ("hello_world.py", ()),
        (f"{sentiment}/gpt2-sentiment.py", SMALL),
        (f"{sentiment}/gpt2-sentiment_peft.py", SMALL),
        (f"{sentiment}/t5-sentiment.py", SMALL),
        (f"{sentiment}/gpt-neo-1b-multi-gpu/gpt-neo-1b_peft.py", ()),
        (f"{sentiment}/gpt-neox-20b_peft/gpt-neo-20b_sentiment_peft.py", SMALL),
        ("multi-adapter-rl/reward_modeling.py", ("--per_device_train_batch_size", "2")),
        ("multi-adapter-rl/rl_finetuning.py", ()),
        (f"{stack}/supervised_finetuning.py", STACK_SFT),
        (f"{stack}/reward_modeling.py", STACK_REWARD),
        (f"{stack}/rl_training.py", STACK_RL),
        (f"{stack}/merge_peft_adapter.py", MERGE),
        ("summarization/scripts/reward_summarization.py", ("--num_train_epochs", "1")),
        ("toxicity/scripts/gpt-j-6b-toxicity.py", SMALL),
        ("best_of_n_sampling/notebooks/best_of_n.ipynb", ()),
        ("sentiment/notebooks/gpt2-sentiment.ipynb", ()),
        ("sentiment/notebooks/gpt2-sentiment-control.ipynb", ()),
    )
    return [_program(path, arguments, release) for path, arguments in pairs]


def _of_0_7_11() -> list[Program]:
    pairs = (
        ("hello_world.py", ()),
        ("scripts/ppo.py", SMALL_PPO),
        ("scripts/ppo.py", (*SMALL_PPO, "--use_peft")),
        ("scripts/ppo.py", ("--use_seq2seq", "--model_name", "lvwerra/t5-imdb", "--query_dataset", "imdb", *SMALL)),
        ("scripts/ppo_multi_adapter.py", ("--use_safetensors", "True")),
        ("scripts/sft.py", ("--model_name_or_path", "facebook/opt-350m", "--max_seq_length", "64", *TRAINING)),
        ("scripts/reward_modeling.py", ("--model_name_or_path", "facebook/opt-350m", "--max_length", "64", *TRAINING)),
        ("scripts/dpo.py", ("--model_name_or_path", "gpt2", *TRAINING)),
        (f"{STACK_LLAMA}/supervised_finetuning.py", STACK_SFT),
        (f"{STACK_LLAMA}/reward_modeling.py", STACK_REWARD),
        (f"{STACK_LLAMA}/rl_training.py", STACK_RL),
        (f"{STACK_LLAMA}/merge_peft_adapter.py", MERGE),
        (f"{RESEARCH}/stack_llama_2/scripts/sft_llama2.py", LLAMA_2_SFT),
        (f"{RESEARCH}/stack_llama_2/scripts/dpo_llama2.py",
         ("--model_name_or_path", "llama", "--max_steps", "2", "--sanity_check", "True", "--report_to", "none")),
        (f"{RESEARCH}/tools/calculator.py", ()),
        (f"{RESEARCH}/tools/python_interpreter.py", (*SMALL, *TOOLS, "--n_epochs", "1")),
        (f"{RESEARCH}/tools/triviaqa.py", (*SMALL, *TOOLS, "--iterations", "1")),
        (f"{RESEARCH}/toxicity/scripts/gpt-j-6b-toxicity.py", SMALL),
        ("notebooks/best_of_n.ipynb", ()),
        ("notebooks/gpt2-sentiment.ipynb", ()),
        ("notebooks/gpt2-sentiment-control.ipynb", ()),
    )  # fmt: skip
    return [_program(path, arguments, "0.7.11") for path, arguments in pairs]


def _of_train(release: str, tldr_arguments: tuple[str, ...]) -> list[Program]:
    """0.9.6 and 0.11.4; what is the same file as in an earlier release is left out there."""
    pairs = [
        ("scripts/sft.py",
         ("--model_name_or_path", "facebook/opt-350m", "--dataset_name", "stanfordnlp/imdb", "--max_seq_length", "64",
          "--dataset_text_field", "text", *TRAINING)),
        ("scripts/reward_modeling.py",
         ("--model_name_or_path", "facebook/opt-350m", "--max_length", "64", *tldr_arguments, *TRAINING)),
        ("scripts/dpo.py",
         ("--model_name_or_path", "gpt2", "--dataset_name", "trl-internal-testing/hh-rlhf-helpful-base-trl-style",
          *TRAINING)),
        ("scripts/ppo/ppo.py", ONLINE),
        ("scripts/ppo/ppo_tldr.py", ONLINE),
        ("scripts/rloo/rloo.py", (*ONLINE, "--rloo_k", "2")),
        ("scripts/rloo/rloo_tldr.py", (*ONLINE, "--rloo_k", "2")),
        (f"{STACK_LLAMA}/supervised_finetuning.py", STACK_SFT),
        (f"{STACK_LLAMA}/reward_modeling.py", STACK_REWARD),
        (f"{STACK_LLAMA}/rl_training.py", STACK_RL),
        (f"{RESEARCH}/stack_llama_2/scripts/sft_llama2.py", LLAMA_2_SFT),
        (f"{RESEARCH}/stack_llama_2/scripts/dpo_llama2.py",
         ("--model_name_or_path", "llama", "--max_steps", "2", "--report_to", "none",
          *(("--sanity_check", "True") if release == "0.9.6" else ()))),
    ]  # fmt: skip
    if release == "0.11.4":
        pairs += [
            ("hello_world.py", ()),
            ("scripts/ppo.py", SMALL_PPO),
            ("scripts/ppo_multi_adapter.py", ("--use_safetensors", "True")),
            (f"{RESEARCH}/tools/calculator.py", ()),
            (f"{RESEARCH}/tools/python_interpreter.py", (*SMALL, *TOOLS, "--n_epochs", "1")),
            (f"{RESEARCH}/tools/triviaqa.py", (*SMALL, *TOOLS, "--iterations", "1")),
            ("notebooks/best_of_n.ipynb", ()),
            ("notebooks/gpt2-sentiment.ipynb", ()),
            ("notebooks/gpt2-sentiment-control.ipynb", ()),
        ]
    return [_program(path, arguments, release) for path, arguments in pairs]


DIALOGUES = ("--dataset_name", "trl-internal-testing/hh-rlhf-helpful-base-trl-style")
CLIENTS = [
    Client(f"TRL {version}", "examples", programs, ["--no-deps evaluate"], f"trl/v{version}/examples")
    for version, programs in (
        ("0.4.7", _of_0_4_7()),
        ("0.7.11", _of_0_7_11()),
        ("0.9.6", _of_train("0.9.6", ())),
        ("0.11.4", _of_train("0.11.4", DIALOGUES)),
    )
]
