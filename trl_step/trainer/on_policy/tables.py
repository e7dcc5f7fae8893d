"""Answers to show: a table on the terminal and in wandb."""

from __future__ import annotations

import sys
from typing import Any

from trl_step.import_utils import is_rich_available
from trl_step.trainer.reports.callbacks import cell


def show(table: dict[str, list[Any]], rows: int = 5) -> None:
    """Print the first rows of a table, given as columns of one length; with the package rich as a grid."""
    found = list(zip(*table.values(), strict=True))[:rows]
    shown = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in row] for row in found]
    if not is_rich_available():
        print("\n".join(" | ".join(map(ascii, row)) for row in shown))
        return
    from rich.console import Console
    from rich.table import Table

    grid = Table(*table, show_lines=True)
    for row in shown:
        grid.add_row(*map(cell, row))
    Console().print(grid)


def log_to_wandb(table: dict[str, list[Any]]) -> None:
    """Log the whole table as `completions` to wandb, if a run of it is open in this process."""
    if "wandb" not in sys.modules or sys.modules["wandb"].run is None:
        return
    import wandb

    rows = [list(row) for row in zip(*table.values(), strict=True)]
    wandb.log({"completions": wandb.Table(columns=list(table), rows=rows)})
