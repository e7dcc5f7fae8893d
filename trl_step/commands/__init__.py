"""The console command `trl_step`, also `python -m trl_step`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import trl_step
from trl_step.command_line_types import Positional


def demo(*arguments: str) -> int:
    """Tune a small language model towards positive film reviews, without a network, in a few minutes.

    `trl_step demo --help` lists the settings, PPOConfig's among them.
    """
    from trl_step.commands.sentiment_demo import run_demo

    return run_demo(arguments)


def port(*arguments: str) -> int:
    """Run a script of TRL 0.7 unchanged; check or rewrite it with --check or --write.

    `trl_step port [--check | --write] script.py [its own arguments]`
    """
    from trl_step.port.command_line import main as port_main

    return port_main(arguments)


def doctor(run: Positional[Path]) -> int:
    """Say what is wrong with a run, the likely cause, and the setting to change.

    Args:
        run: a file of statistics with one JSON object per line, a tensorboard log, or a folder with either.
    """
    from trl_step.commands.saved_runs import examine

    return examine(run)


def serve(
    folder: Positional[Path],
    host: str = "127.0.0.1",
    port: int = 0,
    model_name: str = "policy",
    max_new_tokens: int = 512,
    max_length: Optional[int] = None,
) -> int:
    """Answer clients of OpenAI's API with a saved policy, until Ctrl-C; prints URL and token.

    Args:
        folder: what `save_pretrained` wrote.
        host: address to listen on; any but the loopback address lets other machines in, without encryption.
        port: 0 takes a free one.
        model_name: what clients give as `model`.
        max_new_tokens: tokens of an answer if the client gives no number.
        max_length: tokens of prompt and answer together; by default the model's positions.
    """
    from trl_step.commands.saved_policy import serve_folder
    from trl_step.sampling import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        model_name=model_name,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        max_kept=0,  # nobody takes them
    )
    return serve_folder(folder, settings)


def env() -> int:
    """Print versions and devices for a bug report. It contains no secrets."""
    from trl_step.commands.facts import facts

    print("\n".join(f"- {name}: {value}" for name, value in facts().items()))
    return 0


PASSED_ON = {"demo": demo, "port": port}
"""Commands whose arguments belong to another command line, options included."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; without arguments, list the commands."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if words[0] in PASSED_ON:
        return PASSED_ON[words[0]](*words[1:])
    if words[0] == "--version":
        print(trl_step.__version__)
        return 0
    from tyro.extras import SubcommandApp

    from trl_step.port.command_line import escape_what_cannot_be_written, reader_may_leave

    escape_what_cannot_be_written()
    app = SubcommandApp()
    for command in (demo, port, doctor, serve, env):
        app.command(command)
    with reader_may_leave():
        return app.cli(prog="trl_step", description=trl_step.__doc__, args=words)
