"""The table of clients in the documentation, from the results of the last run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
RUNS = "runs"
REASONS = {
    "env/reward_dist": "on its own release as well, after training: it plots an entry of `logs`, which it never fills",
    "not a notebook of format": "the file in TRL's repository is no JSON: an older version stands in the middle",
    "columns ['answer']": "on its own release as well, in the first step: it logs a column that it does not have",
    "no attribute 'num_proc'": "on its own release as well: it reads an argument that it does not have",
    "PPOv2Trainer.__init__()": "it deletes the constructor of TRL's PPOTrainer to reach that of transformers' Trainer, "
    "from which ours does not derive",
    "FDivergence": "its DPO is made of parts of TRL 0.9's, such as f-divergences, which are not here",
    "get_auto_gptq_quant_linear": "its adapters are made of parts that PEFT 0.13 and later do not have",
}
"""What an error contains -> what is the matter, or what to do."""
ORDER = (RUNS, "runs after `--write`", "runs once mended", "needs a hand", "not tried")


def table_of_clients() -> str:
    """Markdown: the date; then for each client a row of what runs, and one for each program that does not."""
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = recorded["results"]
    counts = ", ".join(f"{sum(row['result'] == kind for row in rows)} {_plural(kind)}" for kind in ORDER)
    lines = [f"Of {len(rows)} programs on {recorded['date']}: {counts}.", ""]
    lines += ["| client | what was run | result | where it stops |", "|---|---|---|---|"]
    for client in dict.fromkeys(f"{row['client']} {row['version']}" for row in rows):
        own = [row for row in rows if f"{row['client']} {row['version']}" == client]
        running = [row for row in own if row["result"] == RUNS]
        if running:
            lines.append(f"| {client} | {_names(running)} | {RUNS} | |")
        others = sorted((row for row in own if row["result"] != RUNS), key=lambda row: ORDER.index(row["result"]))
        lines += [f"| {client} | {_names([row])} | {row['result']} | {_cell(row['line'])} |" for row in others]
    return "\n".join(lines)


def _plural(kind: str) -> str:
    return kind.replace("runs", "run").replace("needs", "need")


def _names(rows: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"`{row['program']}`" for row in rows)


def _cell(line: str) -> str:
    """An error message as text, and what is said of it; nothing in it is a link, a tag or the end of the cell."""
    line = "; ".join([line, *(reason for part, reason in REASONS.items() if part in line)])
    for sign in "\\`*_[]<>|":
        line = line.replace(sign, f"\\{sign}")
    return line
