"""Tables that are made: in docs/ the logged keys, the porting kit's translations, the tuning curves, the clients that
were tried and what was measured; in README.md what was seen on a GPU, and the time of a step.

`python -m tests.readme_tables` writes them anew after a change of `trl_step.algorithms.stats`,
of `trl_step.port.rules`, or of the files in `benchmarks/results/` and `tests/clients/results.json`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests import benchmark_tables
from tests.clients.table import table_of_clients
from tests.markdown_pages import DOCS, README, ROOT
from trl_step.algorithms.stats import LOGGED_BY_LOG_STATS, STATS, Stat
from trl_step.port.aliases import ELSEWHERE
from trl_step.port.moved import MOVED, MOVED_MODULES, RENAMED_ATTRIBUTES, RENAMED_METHODS
from trl_step.port.rules import CALLS, NEW_PARAMETERS, UNKNOWN, Flag, Quantization, Rule, Source
from trl_step.trainer.on_policy.metrics import METRICS

OVER_PROCESSES = {
    "samples": "over all samples",
    "tokens": "over all tokens",
    "variance": "over all tokens",
    "same": "equal on all",
    "local": "each its own",
    "sum": "sum",
}


def metric_table() -> str:
    """Markdown: one row per key."""
    lines = ["| key | formula | shape | several processes |", "|---|---|---|---|"]
    return "\n".join(lines + [_row(stat) for stat in (*STATS, *LOGGED_BY_LOG_STATS)])


def _row(stat: Stat) -> str:
    formula = f"{stat.formula} (with {stat.when})" if stat.when else stat.formula
    cells = (f"`{stat.key}`", formula, stat.shape, OVER_PROCESSES[stat.reduction])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def loop_metric_table() -> str:
    """Markdown: one row per metric of the trainers with `train()`."""
    lines = ["| metric | formula | statistic of `step` |", "|---|---|---|"]
    for one in METRICS:
        formula = one.formula if len(one.algorithms) > 1 else f"{one.formula} (PPO)"
        lines.append(f"| `{one.name}` | {formula} | {f'`{one.source}`' if one.source else ''} |")
    return "\n".join(lines)


PORTING = DOCS / "from-trl-0.7.md"
TUNING = DOCS / "which-setting.md"
PAGES = (README, PORTING, TUNING, DOCS / "performance.md", DOCS / "algorithms.md", DOCS / "logging.md")
CURVES = ("env/reward_mean", "objective/kl", "ppo/policy/entropy", "ppo/policy/clipfrac", "ppo/val/var_explained")
CALL_NAMES = {
    "pipeline": "`pipeline(...)`",
    "pipe": "the pipeline's call",
    "from_pretrained": "`from_pretrained(...)`",
    "value_head.from_pretrained": "the same with a value head",
    "generate": "`generate(...)`, `GenerationConfig(...)`",
    "load_dataset": "`load_dataset(...)`",
    "TrainingArguments": "`TrainingArguments(...)`",
    "OnPolicyConfig": "`RLOOConfig(...)`, `PPOv2Config(...)`",
    "experimental.PPOTrainer": "`PPOTrainer(...)` with `train()`",
    "Trainer": "`Trainer(...)`",
    "Accelerator": "`Accelerator(...)`",
    "tokenizer": "a tokenizer's call, `encode(...)`",
    "prepare_model_for_kbit_training": "`prepare_model_for_int8_training(...)`",
    "push_to_hub": "`push_to_hub(...)`",
    "LoraConfig": "`LoraConfig(...)`",
}


def translation_table() -> str:
    """Markdown: one row per rule of the porting kit, and one for all keywords that are left out for the same reason."""
    calls: defaultdict[Rule, list[str]] = defaultdict(list)
    for kind, rules in CALLS.items():
        for rule in rules:
            if kind == "OnPolicyConfig" and rule in CALLS["TrainingArguments"]:
                continue  # it derives from it
            calls[rule].append(CALL_NAMES[kind])
    rows: dict[tuple[str, str, str], list[str]] = {}
    for rule, names in calls.items():
        rows.setdefault((", ".join(names), _new(rule), rule.why), []).extend(rule.old)
    lines = ["| call | old | new | why |", "|---|---|---|---|"]
    lines += [f"| {call} | {_code(old)} | {new} | {why} |" for (call, new, why), old in rows.items()]
    moved: dict[tuple[str, str], list[str]] = {}
    for (module, name), place in MOVED.items():
        # from a package, unless it is there today, too
        old = re.sub("^trl_step", "trl", module) if place == (old_package(module), name) else old_package(module)
        moved.setdefault((old, ".".join(place)), []).append(name)
    for (old, place), names in moved.items():
        lines.append(f"| import from `{old}` | {_code(dict.fromkeys(names))} | `{place}` | it moved |")
    modules = {**ELSEWHERE, **MOVED_MODULES}
    lines += [f"| import | the module `{old}` | `{place}` | it moved |" for old, place in modules.items()]
    lines += [
        f"| attribute of a tokenizer | `{old}` | `{name}` | it was renamed |"
        for old, name in RENAMED_ATTRIBUTES.items()
    ]
    lines += [f"| method of a tokenizer | `{name}` | call the tokenizer | it was removed |" for name in RENAMED_METHODS]
    lines.append(
        "| method of a tokenizer | `build_inputs_with_special_tokens` | the tokens of a call | it was removed |"
    )
    lines.append(
        "| method of a tokenizer | `apply_chat_template` that tokenizes | `return_dict=False` | it gave token ids |"
    )
    lines.append(
        "| attribute of a `Trainer`, argument of callbacks | `tokenizer` | `processing_class` | it was renamed |"
    )
    for name, parameter in NEW_PARAMETERS.items():
        lines.append(f"| method of your `Trainer` | `{name}` | also takes `{parameter.name}` | `Trainer` passes it |")
    return "\n".join(lines)


def old_package(module: str) -> str:
    """The package that a script imports: "trl_step.core" -> "trl"."""
    return re.sub("^trl_step$", "trl", module.partition(".")[0])


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _new(rule: Rule) -> str:
    """The replacement of a true flag or of a given value."""
    values = {"top_k": 0.0, "min_length": -1, "device_map": {"": 0}, "optim": "adamw_hf"}
    flag = isinstance(rule, (Flag, Quantization))
    given = {name: values.get(name, True if flag else UNKNOWN) for name in rule.old[: 1 if flag else None]}
    new = rule.sources({name: Source("..." if x is UNKNOWN else repr(x), x) for name, x in given.items()}) or {}
    return f"`{', '.join(f'{name}={source}' for name, source in new.items())}`" if new else "left out"


def curve_table() -> str:
    """Markdown: where each run of benchmarks/curves.py was at its end."""
    plots = json.loads((ROOT / "benchmarks" / "results" / "curves.json").read_text(encoding="utf-8"))["plots"]
    runs = {name: curves for lines in plots.values() for name, curves in lines.items()}
    lines = ["| run | score | KL | entropy | clipped | explained variance |", "|---|---|---|---|---|---|"]
    for name, curves in runs.items():
        means = (f"{_mean_of_last_tenth(curves[key]):.2f}" if key in curves else "-" for key in CURVES)
        lines.append(f"| {name} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def _mean_of_last_tenth(curve: list[float]) -> float:
    tail = curve[-max(1, len(curve) // 10) :]
    return sum(tail) / len(tail)


def with_tables(page: str) -> str:
    """`page` with today's tables between their marks."""
    tables = {
        "table of logged keys": metric_table,
        "table of translations": translation_table,
        "table of curves": curve_table,
        "table of metrics of train": loop_metric_table,
        "table of clients": table_of_clients,
        **benchmark_tables.TABLES,
    }
    for mark, table in tables.items():
        begin, end = f"<!-- {mark}: begin (python -m tests.readme_tables writes it) -->", f"<!-- {mark}: end -->"
        if begin in page:
            before, rest = page.split(begin)
            page = f"{before}{begin}\n{table()}\n{end}{rest.split(end, 1)[1]}"
    return page


def write(page: Path) -> None:
    """Bring the tables of a page up to date."""
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    for each in PAGES:
        write(each)
