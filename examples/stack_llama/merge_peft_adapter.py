"""Merge an adapter into its base model: the result loads with a plain `from_pretrained`.

python examples/stack_llama/merge_peft_adapter.py --base_model_name=llama-7b --adapter_model_name=./checkpoints/final \
    --output_name=llama-7b-se
"""

from __future__ import annotations

import warnings
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from common import load_tokenizer, new_scorer
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM


def main(words: Sequence[str] | None = None) -> Path:
    """Merge, save model and tokenizer, and return their folder."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter_model_name", required=True, help="folder or hub name of the adapter")
    parser.add_argument("--base_model_name", required=True, help="the model that it was trained on")
    parser.add_argument("--output_name", required=True, help="folder of the merged model")
    parser.add_argument("--push_to_hub", action="store_true", help="also push it to the hub under that name")
    args = parser.parse_args(words)
    if PeftConfig.from_pretrained(args.adapter_model_name).task_type == "SEQ_CLS":  # a reward model
        base = new_scorer(args.base_model_name, dtype="auto")
    else:
        base = AutoModelForCausalLM.from_pretrained(args.base_model_name, dtype="auto")
    tokenizer = load_tokenizer(args.base_model_name)
    base.config.pad_token_id = tokenizer.pad_token_id
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT reads it
    model = PeftModel.from_pretrained(base, args.adapter_model_name).eval().merge_and_unload()
    model.save_pretrained(args.output_name)
    tokenizer.save_pretrained(args.output_name)
    if args.push_to_hub:
        model.push_to_hub(args.output_name)
        tokenizer.push_to_hub(args.output_name)
    return Path(args.output_name)


if __name__ == "__main__":
    print(main())
