"""How a vLLM server is given weights: an adapter as a folder, or all weights over NCCL."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Optional, Union

import torch

from trl_step.sampling.http import Server, ServerError, at_once, nonsense
from trl_step.sampling.sampler import Weights

Send = Callable[[torch.Tensor], None]
"""Sends one tensor to the server's workers, and returns when it may be changed again."""
Connect = Callable[[str, int, int, torch.device], Callable[[], Send]]
"""(this machine's address, port, size of the group, device) -> what joins the server's workers as the group's rank 0,
which blocks until they come. Raises first if that is not possible here."""
TENSORS_PER_CALL = 16
"""Weights that one call announces; so many are held at a time, whole."""
NOT_FOUND = (400, 404)
"""vLLM's statuses for an adapter that it does not know."""


class AdapterFolders:
    """Hands over a trained adapter as a folder per version, named after it; the one before is removed.

    Args:
        server: vLLM with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
        folder: that of this run, which the server reads under the same path; it is made
    """

    def __init__(self, server: Server, folder: Union[str, PathLike[str]]) -> None:
        self.server = server
        self.folder = Path(folder).resolve()
        self._sent: Optional[int] = None

    def name(self, version: int) -> str:
        """Of an adapter on the server; that of the run's folder keeps runs apart."""
        return f"{self.folder.name}-{version}"

    def send(self, weights: Weights, version: int) -> None:
        folder = self.folder / self.name(version)
        weights.save_adapter(folder)
        weights.on_main(partial(self._load, folder, version))
        self._sent = version

    def check(self, version: int) -> None:
        served = self.server.ask("/v1/models", get=True)
        if self.name(version) not in [card.get("id") for card in served.get("data", ())]:
            raise ServerError(f"{self.server.url} has no adapter {self.name(version)} any more")

    def _load(self, folder: Path, version: int) -> None:
        # an earlier try, or an earlier run with this folder, may have left one of that name; its prompts go with it
        if self._unload(version):
            self._forget_prompts()
        self.server.tell("/v1/load_lora_adapter", {"lora_name": self.name(version), "lora_path": str(folder)})
        if self._sent is not None and self._sent != version:
            self._unload(self._sent)
            shutil.rmtree(self.folder / self.name(self._sent), ignore_errors=True)

    def _unload(self, version: int) -> bool:
        """Whether the server had the adapter of `version`."""
        try:
            self.server.tell("/v1/unload_lora_adapter", {"lora_name": self.name(version)})
        except ServerError as error:
            if error.status in NOT_FOUND:
                return False
            raise
        return True

    def _forget_prompts(self) -> None:
        try:
            self.server.tell("/reset_prefix_cache")
        except ServerError as error:
            if error.status != 404:  # the route exists only in vLLM's development mode
                raise


class Broadcast:
    """Sends all weights to the workers of a server, while it is paused.

    Args:
        server: vLLM with `--weight-transfer-config '{"backend": "nccl"}'` and VLLM_SERVER_DEV_MODE=1
        address: of this machine, as the workers reach it
        connect: see `Connect`
    """

    def __init__(self, server: Server, address: str, connect: Connect) -> None:
        self.server = server
        self.address = address
        self.connect = connect
        self._send: Optional[Send] = None

    def send(self, weights: Weights, version: int) -> None:
        try:
            weights.on_main(self._join)
            try:
                weights.on_main(self._begin)
                tensors = weights.tensors()
                while batch := list(islice(tensors, TENSORS_PER_CALL)):
                    weights.on_main(partial(self._transfer, batch))
                weights.on_main(partial(self._finish, version))
            finally:
                weights.on_main(partial(self.server.tell, "/resume"))
        except BaseException:
            self.forget()  # half a transfer leaves the group in an unknown state
            raise

    def check(self, version: int) -> None:
        if self._send is None:
            raise ServerError(f"{self.server.url} may have started anew")
        try:
            found = self.server.ask("/weight_info", get=True).get("weight_version")
        except ServerError as error:
            if error.status == 404:  # releases of vLLM without this route
                return
            raise
        if found != str(version):
            self.forget()
            raise ServerError(f"{self.server.url} holds weights of version {found}, not {version}")

    def forget(self) -> None:
        """The server may have started anew: the next `check` raises, and the next `send` joins its workers again."""
        self._send = None

    def _join(self) -> None:
        if self._send is not None:
            return
        found = self.server.ask("/get_world_size", get=True)
        if not isinstance(found, dict) or type(found.get("world_size")) is not int:
            raise nonsense(f"{self.server.url}/get_world_size", "no number of workers", found)
        port, size = _free_port(self.address), found["world_size"] + 1
        where = {"master_address": self.address, "master_port": port, "rank_offset": 1, "world_size": size}
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        join = self.connect(self.address, port, size, device)
        # either side waits for the other one
        tell = partial(self.server.tell, "/init_weight_transfer_engine", {"init_info": where})
        calls: list[Callable[[], Optional[Send]]] = [join, tell]
        self._send = at_once(calls, 2)[0]

    def _begin(self) -> None:
        self.server.tell("/pause?mode=wait")
        self.server.tell("/start_weight_update", {"is_checkpoint_format": True})

    def _transfer(self, batch: list[tuple[str, torch.Tensor]]) -> None:
        info = {
            "names": [name for name, _ in batch],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in batch],
            "shapes": [list(tensor.shape) for _, tensor in batch],
        }
        calls = [partial(self.server.tell, "/update_weights", {"update_info": info}), partial(self._send_all, batch)]
        at_once(calls, 2)

    def _send_all(self, batch: list[tuple[str, torch.Tensor]]) -> None:
        assert self._send is not None
        for _, tensor in batch:
            self._send(tensor.detach())

    def _finish(self, version: int) -> None:
        self.server.tell("/finish_weight_update", {"weight_version": str(version)})
        self.server.tell("/reset_prefix_cache")


def nccl(address: str, port: int, size: int, device: torch.device) -> Callable[[], Send]:
    """See `Connect`: over NCCL, with vLLM's own communicator.

    vLLM's own rendezvous hands NCCL's 128-byte id around with pickle: keep `address` on a network of your own.

    Raises:
        RuntimeError: there is no GPU here, or no vLLM.
    """
    if device.type != "cuda":
        raise RuntimeError(
            "weights go to a vLLM server over NCCL, from a GPU, and there is none here; train an adapter and give "
            "VLLMSampler(adapters=FOLDER), or connect=... of your own"
        )
    try:
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup
    except ImportError as error:
        raise RuntimeError(
            "weights go to a vLLM server over the communicator of vLLM, which is not installed here: pip install the "
            "server's version of vllm, or train an adapter and give VLLMSampler(adapters=FOLDER)"
        ) from error

    def join() -> Send:
        with torch.cuda.device(device):  # in this thread: each one has a current device of its own
            group = StatelessProcessGroup.create(host=address, port=port, rank=0, world_size=size)
            communicator = PyNcclCommunicator(group, device=device)

        def send(tensor: torch.Tensor) -> None:
            with torch.cuda.device(device):
                stream = torch.cuda.current_stream()
                communicator.broadcast(tensor.to(device).contiguous(), src=0, stream=stream)
                stream.synchronize()

        return send

    return join


def _free_port(address: str) -> int:
    with socket.socket() as listener:
        listener.bind((address, 0))
        return int(listener.getsockname()[1])
