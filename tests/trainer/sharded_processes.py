"""Training, sampling and saving of a sharded model (FSDP2, ZeRO-2, ZeRO-3), played as one of two processes.

`launch(FOLDER, "fsdp2", SCRIPT)` of `tests.regressions.two_processes` starts both; each writes what it saw to FOLDER.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as param_group
from torch.distributed.tensor import DTensor

from tests.regressions.two_processes import CASES, Case, build, play
from tests.tiny import batch, tokenizer, weights, with_value_head
from tests.tiny import config as tiny_config
    with_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if with_deepspeed:
        import deepspeed

        # its collectives in shared memory are compiled for minutes at the first start; gloo's do as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    cases = DEEPSPEED_CASES if with_deepspeed else SHARDED_CASES
    seen: dict[str, Any] = {name: play(case, rank, accelerator_kwargs={}) for name, case in cases.items()}
    seen["sampled"] = (sample_with_deepspeed if with_deepspeed else sample)(rank)
    seen["own optimizer"] = (save_with_deepspeed if with_deepspeed else own_optimizer)(rank, folder)
    if not with_deepspeed:
        seen["resumed"] = resumed(folder)
    torch.save(seen, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
