"""New processes without new imports: those of torch and transformers take longer than most of what is tested."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a process that begins as this one is now; its id, for `wait`.

    To be called in a process that has imported modules and done nothing else: no thread of torch is taken along.
    """
    child = os.fork()
    if child:
        return child
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait(child: int) -> None:
    """Until it has ended.

    Raises:
        RuntimeError: it failed.
    """
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a forked process failed; it has printed why")
