"""What each of accelerate's trackers accepts besides numbers, and how to pass it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

SAMPLES = "game_log"
"""The key of the table of samples."""
FLAT = ("mlflow", "comet_ml", "dvclive")
"""Those whose settings have no levels."""

_PLAIN = (int, float, str, bool)


class Table(NamedTuple):
    """A table of samples; the last column is the reward."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def markdown(self) -> str:
        """As Markdown, the reward with three digits."""
        return markdown_table(self.columns, ((*cells, f"{reward:.3f}") for *cells, reward in self.rows))

    def plain(self) -> list[list[Any]]:
        """The rows; what is neither a number nor a text becomes one."""
        return [[cell if isinstance(cell, _PLAIN) else str(cell) for cell in row] for row in self.rows]


def write(
    tracker: Any, logs: dict[str, Any], table: Table | None, step: int, wandb_step: int | None = None
) -> list[str]:
    """Log numbers, arrays and a table of samples under the number `step`.

    Args:
        wandb_step: the number in wandb; None: wandb counts, since it refuses a number that is below its own

    Returns:
        The keys that this tracker has no place for, so that nothing of them was written.
    """
    if tracker.name == "wandb":
        tracker.log(logs | _wandb_table(table), step=wandb_step)
        return []
    if tracker.name == "trackio":
        tracker.log(_for_trackio(logs, table), step=step)
        return []
    arrays = {key: value for key, value in logs.items() if isinstance(value, np.ndarray)}
    numbers = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
    tracker.log(numbers, step=step)
    left_out = [key for key in logs if key not in numbers and key not in arrays]
    if tracker.name in _HISTOGRAMS:
        for key, value in arrays.items():
            if len(finite := value[np.isfinite(value)]):
                _HISTOGRAMS[tracker.name](tracker, key, finite, step)
    else:
        left_out += list(arrays)
    if table is not None and tracker.name in _TABLES:
        _TABLES[tracker.name](tracker, table, step)
    elif table is not None and hasattr(tracker, "log_table"):  # accelerate's own name for it
        tracker.log_table(SAMPLES, columns=table.columns, data=table.plain(), step=step)
    elif table is not None:
        left_out.append(SAMPLES)
    return left_out


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Text of a Markdown table."""
    names = list(header)
    lines = [names, ["---"] * len(names), *(map(_markdown_cell, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


# --- those that take everything in one call --------------------------------------------------------------------------


def _wandb_table(table: Table | None) -> dict[str, Any]:
    if table is None:
        return {}
    import wandb

    return {SAMPLES: wandb.Table(columns=table.columns, rows=[list(row) for row in table.rows])}


def _for_trackio(logs: dict[str, Any], table: Table | None) -> dict[str, Any]:
    import trackio

    values = {key: trackio.Histogram(value) if isinstance(value, np.ndarray) else value for key, value in logs.items()}
    return values if table is None else {**values, SAMPLES: trackio.Table(columns=table.columns, data=table.plain())}


# --- histograms ------------------------------------------------------------------------------------------------------


def _to_tensorboard(tracker: Any, key: str, values: np.ndarray, step: int) -> None:
    tracker.writer.add_histogram(key, values, step)


def _to_comet(tracker: Any, key: str, values: np.ndarray, step: int) -> None:
    tracker.writer.log_histogram_3d(values, name=key, step=step)


def _to_aim(tracker: Any, key: str, values: np.ndarray, step: int) -> None:
    import aim

    tracker.writer.track(aim.Distribution(values), name=key, step=step)


def _to_clearml(tracker: Any, key: str, values: np.ndarray, step: int) -> None:
    counts, labels = _counted(values)
    tracker.task.get_logger().report_histogram(title=key, series="train", values=counts, iteration=step, xlabels=labels)


def _to_swanlab(tracker: Any, key: str, values: np.ndarray, step: int) -> None:
    import swanlab

    counts, labels = _counted(values)
    tracker.log({key: swanlab.echarts.Bar().add_xaxis(labels).add_yaxis(key, counts)}, step=step)


def _counted(values: np.ndarray) -> tuple[list[int], list[str]]:
    """How many values are in each of ten bins, and the middle of each bin."""
    counts, edges = np.histogram(values, bins=10)
    return counts.tolist(), [f"{middle:.4g}" for middle in (edges[1:] + edges[:-1]) / 2]


# --- tables of samples -----------------------------------------------------------------------------------------------


def _table_to_tensorboard(tracker: Any, table: Table, step: int) -> None:
    tracker.writer.add_text(SAMPLES, table.markdown(), step)


def _table_to_comet(tracker: Any, table: Table, step: int) -> None:
    tracker.writer.log_table(f"{SAMPLES}_{step:06d}.csv", table.plain(), headers=table.columns)


def _table_to_aim(tracker: Any, table: Table, step: int) -> None:
    import aim

    tracker.writer.track(aim.Text(table.markdown()), name=SAMPLES, step=step)


def _table_to_mlflow(tracker: Any, table: Table, step: int) -> None:
    import mlflow

    # not log_table, which reads and writes all that came before in every step
    mlflow.log_text(table.markdown(), f"{SAMPLES}/{step:06d}.md", run_id=tracker.active_run.info.run_id)


def _table_to_swanlab(tracker: Any, table: Table, step: int) -> None:
    import swanlab

    tracker.log({SAMPLES: swanlab.echarts.Table().add(table.columns, table.plain())}, step=step)


_HISTOGRAMS: dict[str, Callable[[Any, str, np.ndarray, int], None]] = {
    "tensorboard": _to_tensorboard,
    "comet_ml": _to_comet,
    "aim": _to_aim,
    "clearml": _to_clearml,
    "swanlab": _to_swanlab,
}
_TABLES: dict[str, Callable[[Any, Table, int], None]] = {
    "tensorboard": _table_to_tensorboard,
    "comet_ml": _table_to_comet,
    "aim": _table_to_aim,
    "mlflow": _table_to_mlflow,
    "swanlab": _table_to_swanlab,
}
