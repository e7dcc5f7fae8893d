"""The output of a run of the sentiment example: a table of samples, the curves, and a summary."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Evaluation(NamedTuple):
    """Responses to the held-out queries, and the classifier's probability that each text is positive (0 to 1)."""

    responses: list[str]
    positive: list[float]

    @property
    def mean(self) -> float:
        """The mean probability of "positive"."""
        return sum(self.positive) / len(self.positive)


def check_packages(*names: str) -> None:
    """Raise ImportError now, not after training, if a package for the report is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this example needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def print_samples(queries: list[str], before: Evaluation, after: Evaluation, number: int = 8) -> None:
    """A table of the first `number` queries with both responses and their scores."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="held-out queries, before and after (score: probability of a positive review)", show_lines=True)
    table.add_column("query", style="cyan", ratio=2)
    table.add_column("response before", ratio=5)
    table.add_column("score", justify="right", min_width=5)
    table.add_column("response after", ratio=5)
    table.add_column("score", justify="right", min_width=5)
    for i, query in enumerate(queries[:number]):
        table.add_row(
            escape(query),
            escape(before.responses[i].strip()),
            f"{before.positive[i]:.3f}",
            escape(after.responses[i].strip()),
            f"{after.positive[i]:.3f}",
        )
    Console().print(table)


UNITS = {"KL": "nats per response", "entropy": "nats per token", "reward": "mean score", "guesses": "mean per episode"}
"""Of the quantities that are plotted."""


def draw_curves(history: list[dict[str, float]], file: Path, units: Mapping[str, str] = UNITS) -> None:
    """One panel over the steps for each quantity in `history`, as a PNG. `units` are on the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(history[0])
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(names)), names, strict=True):
        panel.plot(range(1, len(history) + 1), [step[name] for step in history])
        panel.set(title=name, xlabel="step", ylabel=units.get(name, ""))
        panel.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def write_summary(file: Path, summary: dict[str, Any]) -> None:
    """`summary` as indented JSON."""
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
