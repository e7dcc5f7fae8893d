"""The table of logged keys in README.md, made from `trl_step.ppo.stats`.

`python -m tests.readme_tables` writes it anew after a change there.
"""

from __future__ import annotations

from tests.markdown_pages import README
from trl_step.ppo.stats import LOGGED_BY_LOG_STATS, STATS, Stat

BEGIN = "<!-- table of logged keys: begin (python -m tests.readme_tables writes it) -->"
END = "<!-- table of logged keys: end -->"

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
    cells = (f"`{stat.key}`", stat.formula, stat.shape, OVER_PROCESSES[stat.reduction])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def with_metric_table(readme: str) -> str:
    """`readme` with today's table between the two marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{metric_table()}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    README.write_text(with_metric_table(README.read_text(encoding="utf-8")), encoding="utf-8")
