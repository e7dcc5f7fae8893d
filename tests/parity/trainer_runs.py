"""Runs the SFT, reward, DPO and iterative trainers of a library on small inputs and gives every number as an array.

The same code runs on release 0.7.11, to record, and on this package, to replay. Weights and texts come from NumPy's
legacy random stream, which no release changes.
"""

from __future__ import annotations

import json
import random
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer

PAD, EOS, BOS = "<pad>", "</s>", "<s>"
LETTERS = "abcdefgh_#:"
MERGES = [("a", "b"), ("c", "d"), ("ab", "cd"), ("_", "a"), ("e", "f"), ("#", ":"), ("g", "_")]
Arrays = dict[str, np.ndarray]
Run = Callable[[ModuleType], Arrays]

NOT_RECORDED = {"prompt", "chosen", "rejected", "prompt_token_type_ids"}
"""Texts, and a column that some releases of transformers add and no model here reads"""

DPO_OPTIONS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid-beta": {"beta": 0.5},
    "sigmoid-smoothing": {"label_smoothing": 0.2},
    "sigmoid-reference-free": {"reference_free": True},
    "hinge": {"loss_type": "hinge"},
    "hinge-reference-free": {"loss_type": "hinge", "reference_free": True},
    "ipo": {"loss_type": "ipo"},
    "ipo-beta": {"loss_type": "ipo", "beta": 0.4},
    "kto_pair": {"loss_type": "kto_pair"},
    "kto_pair-beta": {"loss_type": "kto_pair", "beta": 0.7},
    "keep-start": {"truncation_mode": "keep_start"},
    "short": {"max_length": 12, "max_prompt_length": 5},
    "precomputed": {"precompute_ref_log_probs": True},
}


# --- tokenizer, models, texts --------------------------------------------------------------------------------


def build_tokenizer() -> Any:
    """Byte pairs over a few letters; merges cross the end of a word, so a prompt's last token may change."""
    tokens = [PAD, EOS, BOS, "<unk>", *LETTERS, *("".join(pair) for pair in MERGES)]
    description = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [" ".join(pair) for pair in MERGES],
        },
    }  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token="<unk>",
    )


def draw(model: torch.nn.Module, seed: int) -> Any:
    """Fill every parameter, each from a stream of its own name: the order of parameters does not matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stream = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
            noise = torch.from_numpy(stream.standard_normal(tuple(parameter.shape)).astype(np.float32))
            is_norm_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(is_norm_scale + (0.1 if parameter.dim() == 1 else 0.25) * noise)
    return model


IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "vocab_size": 22}


def gpt2(seed: int, kind: str = "GPT2LMHeadModel") -> Any:
    """Two layers of width 16."""
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_inner=32, n_positions=64, num_labels=1, **rates, **IDS
    )
    return draw(getattr(transformers, kind)(config), seed)


def t5(seed: int) -> Any:
    """Two layers of width 16 on each side."""
    ids = {name: value for name, value in IDS.items() if name != "bos_token_id"}
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0, decoder_start_token_id=0, **ids
    )
    return draw(transformers.T5ForConditionalGeneration(config), seed)


def texts(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    """Random strings of `LETTERS`."""
    stream = np.random.RandomState(seed)
    lengths = stream.randint(shortest, longest + 1, count)
    return ["".join(stream.choice(list(LETTERS), length)) for length in lengths]


def preferences() -> dict[str, list[str]]:
    """Eight prompts with two answers; two prompts end in the first half of a merge that their answers complete."""
    prompts, chosen, rejected = texts(8, 2, 14, 1), texts(8, 1, 12, 2), texts(8, 1, 12, 3)
    prompts[0], chosen[0], rejected[0] = "efab", "cdgh", "efgh"
    prompts[1], chosen[1], rejected[1] = "hhab", "cdh", "cde"
    return {"prompt": prompts, "chosen": chosen, "rejected": rejected}


def arguments(folder: str, **options: Any) -> Any:
    """Plain gradient descent, three updates on the whole data at once: the order of rows cannot matter."""
    return transformers.TrainingArguments(**settings(folder, **options))


def settings(folder: str, **options: Any) -> dict[str, Any]:
    """Keyword arguments of a `TrainingArguments` of any release."""
    defaults = {
        "output_dir": folder, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "max_steps": 3,
        "learning_rate": 0.05, "lr_scheduler_type": "constant", "optim": "sgd", "report_to": [], "use_cpu": True,
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "remove_unused_columns": False,
    }  # fmt: skip
    return {**defaults, **options}


def trained(trainer: Any, before: dict[str, torch.Tensor]) -> Arrays:
    """How far each parameter that is trained has moved: of a matrix two weighted sums, of a vector every entry."""
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            move = (parameter.detach() - before[name]).double().numpy()
            weights = np.random.RandomState(9).uniform(0.5, 1.5, (2, move.size)) if move.ndim > 1 else np.eye(move.size)
            found[f"moved/{name}"] = (weights @ move.ravel()).astype(np.float32)
    return found


def logged(trainer: Any) -> Arrays:
    """The loss of each update."""
    return {"logged": np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])}


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter as it is."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def as_arrays(tensors: dict[str, Any], prefix: str) -> Arrays:
    """The tensors among the values."""
    return {
        f"{prefix}/{name}": value.detach().float().numpy()
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor) and name != "token_type_ids"
    }


# --- the runs ------------------------------------------------------------------------------------------------


UNCLIPPED = {"max_grad_norm": 1e9, "learning_rate": 0.02}
"""Transformers clips gradients to a norm of 1 by default, which hides a wrong scale of the loss"""


def dpo(
    library: ModuleType,
    options: dict[str, Any],
    seq2seq: bool = False,
    lora: bool = False,
    training: Mapping[str, Any] = MappingProxyType({}),
) -> Arrays:
    """Tokens, batch, log-probs, losses, metrics, three updates."""
    build = t5 if seq2seq else gpt2
    sizes: dict[str, Any] = {"max_length": 20, "max_prompt_length": 8, **({"max_target_length": 9} if seq2seq else {})}
    adapter = None
    if lora:
        from peft import LoraConfig

        adapter = LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    rows = Dataset.from_dict(preferences())
    with tempfile.TemporaryDirectory() as folder:
        trainer = library.DPOTrainer(
            build(1),
            None if lora else build(2),
            args=arguments(folder, **training),
            train_dataset=rows,
            eval_dataset=rows,
            tokenizer=build_tokenizer(),
            peft_config=adapter,
            **{**sizes, **options},
        )
        draw_adapters(trainer.model)
        found: Arrays = {}
        for name in sorted(set(trainer.train_dataset.column_names) - NOT_RECORDED):
            found[f"tokens/{name}"] = np.array([token for row in trainer.train_dataset[name] for token in row])
        trainer.get_train_dataloader()  # computes the reference's log-probs, where they are to be precomputed
        ordered = [trainer.train_dataset[index] for index in range(len(rows))]
        batch = trainer.data_collator(ordered)
        joined = trainer.concatenated_inputs(batch, seq2seq, -100, 0, torch.device("cpu"))
        found |= as_arrays(batch, "batch") | as_arrays(joined, "joined")
        forward = trainer.concatenated_forward(trainer.model, batch)
        reference = trainer.compute_reference_log_probs(batch)
        found |= as_arrays(dict(zip(("chosen_logps", "rejected_logps"), forward[:2], strict=True)), "policy")
        found |= as_arrays(dict(zip(("chosen_logps", "rejected_logps"), reference, strict=True)), "reference")
        losses = trainer.dpo_loss(*forward[:2], *reference)
        found |= as_arrays(dict(zip(("losses", "chosen_rewards", "rejected_rewards"), losses, strict=True)), "loss")
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch, "eval")
        found |= as_arrays({"mean": loss}, "loss") | as_arrays(metrics, "metrics")
        before = copy_of(trainer.model)
        trainer.train()
        return found | logged(trainer) | trained(trainer, before)


def draw_adapters(model: torch.nn.Module) -> None:
    """The inner matrices of fresh adapters, which PEFT draws at random; the outer ones stay 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                stream = np.random.RandomState(zlib.crc32(name.encode()))
                parameter.copy_(torch.from_numpy(stream.standard_normal(tuple(parameter.shape)).astype(np.float32)))


def reward(library: ModuleType, margins: bool, training: Mapping[str, Any] = MappingProxyType({})) -> Arrays:
    """Loss, evaluation and three updates of a reward model; with margins, those of the release's own broadcast."""
    tokenizer = build_tokenizer()
    data = preferences()
    columns: dict[str, list] = {}
    for side in ("chosen", "rejected"):
        tokens = tokenizer([prompt + answer for prompt, answer in zip(data["prompt"], data[side], strict=True)])
        columns |= {f"{part}_{side}": tokens[part] for part in ("input_ids", "attention_mask")}
    if margins:
        columns["margin"] = [0.1, 0.9, 0.4, 0.0, 1.5, 0.3, 0.7, 0.2]
    rows = Dataset.from_dict(columns)
    with tempfile.TemporaryDirectory() as folder:
        config = library.RewardConfig(**settings(folder, max_length=32, **training))
        config.exact_v07 = True
        trainer = library.RewardTrainer(
            gpt2(3, "GPT2ForSequenceClassification"), config, tokenizer=tokenizer, train_dataset=rows, eval_dataset=rows
        )
        batch = trainer.data_collator([rows[index] for index in range(len(rows))])
        found = as_arrays(batch, "batch")
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        found |= as_arrays({"loss": loss, **outputs}, "forward")
        names = ("loss", "preferences", "labels")
        found |= as_arrays(dict(zip(names, trainer.prediction_step(trainer.model, batch, False), strict=True)), "eval")
        found["accuracy"] = np.array(trainer.evaluate()["eval_accuracy"])
        before = copy_of(trainer.model)
        trainer.train()
        return found | logged(trainer) | trained(trainer, before)


def packing(library: ModuleType, **options: Any) -> Arrays:
    """The rows of three rounds over a small dataset."""
    rows = [{"text": text} for text in texts(60, 1, 30, 7)]
    defaults: dict[str, Any] = {"seq_length": 16, "num_of_sequences": 4, "dataset_text_field": "text"}
    random.seed(0)
    from_options = {**defaults, **options}
    packed = library.trainer.ConstantLengthDataset(build_tokenizer(), rows, **from_options)
    limit = 100 if from_options.get("infinite") else 10**6
    found = []
    for row, _ in zip(packed, range(limit), strict=False):
        assert torch.equal(row["input_ids"], row["labels"])
        found.append(row["input_ids"].numpy())
    return {"rows": np.stack(found)}


def completions(library: ModuleType) -> Arrays:
    """Labels of one-turn texts and of conversations, whole, cut off on both sides, and without a template."""
    answer, question = "#:", "ef"
    single = ["abcd" + answer + "gh_ab", "a" + answer + "b" + answer + "ccd", "hhhh", answer]
    turns = [
        "efab#:cdghefgg#:hh", "#:cdefab#:gh", "efab#:cdef", "ab#:cd", "efab", "efab#:cd#:efg", "a#:befc#:defg#:h",
    ]  # fmt: skip
    tokenizer = build_tokenizer()
    found = {}
    for name, chosen, template in (("single", single, None), ("turns", turns, question)):
        collator = library.DataCollatorForCompletionOnlyLM(answer, template, tokenizer=tokenizer)
        batch = collator([tokenizer(text) for text in chosen])
        found |= as_arrays(dict(batch), name)
    ids = tokenizer.encode(answer, add_special_tokens=False)
    collator = library.DataCollatorForCompletionOnlyLM(ids, tokenizer=tokenizer, ignore_index=-7)
    return found | as_arrays(dict(collator([tokenizer(text) for text in single])), "ids")


def iterative(library: ModuleType, seq2seq: bool, training: Mapping[str, Any] = MappingProxyType({})) -> Arrays:
    """Three steps on token ids; labels of a decoder are its inputs."""
    stream = np.random.RandomState(5)
    model = (t5 if seq2seq else gpt2)(4)
    with tempfile.TemporaryDirectory() as folder:
        trainer = library.IterativeSFTTrainer(
            model,
            arguments(folder, per_device_train_batch_size=3, max_steps=100, gradient_accumulation_steps=2, **training),
            build_tokenizer(),
        )
        before = copy_of(trainer.model)
        torch.manual_seed(0)
        for _ in range(3):
            rows = [torch.from_numpy(stream.randint(4, 22, length)) for length in (5, 9, 2, 7, 7, 3, 6)]
            labels = [torch.from_numpy(stream.randint(4, 22, length)) for length in (4, 3, 6, 2, 5, 5, 8)]
            trainer.step(input_ids=rows, labels=labels if seq2seq else rows)
        return logged(trainer) | trained(trainer, before)


def sft(library: ModuleType, packed: bool, training: Mapping[str, Any] = MappingProxyType({})) -> Arrays:
    """Tokens, an evaluation and three updates on a text field."""
    rows = Dataset.from_dict({"text": texts(8, 12, 30, 11)})
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = library.SFTTrainer(
            gpt2(5),
            arguments(
                folder,
                remove_unused_columns=True,
                per_device_train_batch_size=16,
                per_device_eval_batch_size=32,
                seed=0,
                **training,
            ),
            train_dataset=rows,
            eval_dataset=rows,
            tokenizer=build_tokenizer(),
            dataset_text_field="text",
            max_seq_length=16,
            packing=packed,
            num_of_sequences=4,
        )
        found = {"tokens": np.array([token for row in trainer.train_dataset["input_ids"] for token in row])}
        found["eval_loss"] = np.array(trainer.evaluate()["eval_loss"])
        before = copy_of(trainer.model)
        trainer.train()
        return found | logged(trainer) | trained(trainer, before)


def neftune(library: ModuleType) -> Arrays:
    """The noise on an embedding in training, and none in evaluation."""
    embedding = torch.nn.Embedding(22, 16)
    draw(embedding, 6)
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(library.trainer.utils.neftune_post_forward_hook)
    ids = torch.arange(20).view(4, 5)
    torch.manual_seed(0)
    return {"train": embedding(ids).detach().numpy(), "eval": embedding.eval()(ids).detach().numpy()}


def prompt_stats(library: ModuleType) -> Arrays:
    """Advantages per prompt, as the buffers fill."""
    stream = np.random.RandomState(8)
    tracker = library.trainer.utils.PerPromptStatTracker(buffer_size=5, min_count=3)
    rounds = [tracker.update(list(stream.choice(["a", "b", "c"], 6)), stream.standard_normal(6)) for _ in range(4)]
    return {"advantages": np.stack(rounds)}


def runs() -> Iterator[tuple[str, Run]]:
    """Every run by its name."""
    for name, options in DPO_OPTIONS.items():
        yield f"dpo-{name}", lambda library, options=options: dpo(library, options)
    for kind in ("sigmoid", "ipo", "kto_pair"):
        yield f"dpo-t5-{kind}", lambda library, kind=kind: dpo(library, {"loss_type": kind}, seq2seq=True)
    yield "dpo-lora", lambda library: dpo(library, {}, lora=True)
    yield "reward", lambda library: reward(library, margins=False)
    yield "reward-margins", lambda library: reward(library, margins=True)
    yield "packing", packing
    for name, options in {
        "ordered": {"shuffle": False},
        "no-separator": {"append_concat_token": False},
        "infinite": {"infinite": True},
        "formatted": {"formatting_func": lambda row: f"{row['text']}#:", "seq_length": 10, "chars_per_token": 3.1},
    }.items():
        yield f"packing-{name}", lambda library, options=options: packing(library, **options)
    yield "completions", completions
    yield "iterative", lambda library: iterative(library, seq2seq=False)
    yield "iterative-t5", lambda library: iterative(library, seq2seq=True)
    yield "sft", lambda library: sft(library, packed=False)
    yield "sft-packed", lambda library: sft(library, packed=True)
    yield "sft-unclipped", lambda library: sft(library, packed=False, training=UNCLIPPED)
    yield "sft-packed-unclipped", lambda library: sft(library, packed=True, training=UNCLIPPED)
    yield "iterative-unclipped", lambda library: iterative(library, seq2seq=False, training=UNCLIPPED)
    yield "iterative-t5-unclipped", lambda library: iterative(library, seq2seq=True, training=UNCLIPPED)
    yield "reward-unclipped", lambda library: reward(library, margins=False, training=UNCLIPPED)
    yield "dpo-unclipped", lambda library: dpo(library, {}, training=UNCLIPPED)
    yield "neftune", neftune
    yield "prompt-stats", prompt_stats


def run_all(library: ModuleType, only: str | None = None) -> dict[str, Arrays]:
    """Every run, or one, in one thread."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: run(library) for name, run in runs() if only in (None, name)}
