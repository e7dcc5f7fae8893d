"""`VLLMSampler`: a stock vLLM server over HTTP, from release 0.22 on.

The weights reach it as a folder per version, if only an adapter is trained (`AdapterFolders`), or over NCCL
(`Broadcast`).
"""

from __future__ import annotations

from os import PathLike
from typing import Any, Optional, Union

from trl_step.sampling.http import nonsense
from trl_step.sampling.sampler import Weights
from trl_step.sampling.servers import Answer, ServerSampler
from trl_step.sampling.settings import Request, SamplingSettings
from trl_step.sampling.vllm_weights import AdapterFolders, Broadcast, Connect, nccl


class VLLMSampler(ServerSampler):
    """Draws answers from a vLLM server, which has to run with `--logprobs-mode processed_logprobs`.

    With `adapters` the trained adapter is written into a folder that the server reads as well, and loaded from there.
    Without, all weights are sent: the server runs with `--weight-transfer-config '{"backend": "nccl"}'` on other GPUs
    than the trainer's, and vLLM is installed in the trainer's environment too.

    Args:
        url: of the server
        weights: see `Sampler`; None: the server's weights stay what they are
        adapters: a folder of this run, on a file system that the server shares, under the same path
        model: name of the model on the server; None: the first that it serves
        address: of this machine, as the server's workers reach it; for weights over NCCL
        connect: joins the group that carries the weights; another one than `nccl` is for tests, or other transports
        token, timeout, parallel, vocabulary: see `ServerSampler`
    """

    cut_logprobs = True
    how_to_mend = "Start vLLM with --logprobs-mode processed_logprobs."

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        weights: Optional[Weights] = None,
        *,
        adapters: Union[str, PathLike[str], None] = None,
        model: Optional[str] = None,
        address: str = "127.0.0.1",
        connect: Connect = nccl,
        token: Optional[str] = None,
        timeout: float = 600.0,
        parallel: int = 32,
        vocabulary: Optional[int] = None,
    ) -> None:
        super().__init__(url, weights, token=token, timeout=timeout, parallel=parallel, vocabulary=vocabulary)
        self._model = model
        self._sender: Union[AdapterFolders, Broadcast] = (
            Broadcast(self.server, address, connect) if adapters is None else AdapterFolders(self.server, adapters)
        )

    def update(self, weights: Weights, version: int) -> None:
        self._sender.send(weights, version)

    def check_version(self, version: int) -> None:
        self._sender.check(version)

    def lost(self) -> None:
        if isinstance(self._sender, Broadcast):
            self._sender.forget()

    def post(self, request: Request, count: int, wanted: SamplingSettings) -> tuple[str, dict[str, Any]]:
        body = {
            "model": self._model_name(),
            "prompt": request.query,
            "n": count,
            "max_tokens": request.limit,
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "top_k": wanted.top_k,
            "min_p": wanted.min_p,
            "repetition_penalty": wanted.repetition_penalty,
            "min_tokens": wanted.min_new_tokens,
            "stop": wanted.stop_strings,
            "stop_token_ids": wanted.end_ids,
            "ignore_eos": not wanted.engine_ends,
            "logprobs": 1,
            "return_token_ids": True,
        }
        return "/v1/completions", body

    def answers(self, content: Any) -> list[Answer]:
        choices = sorted(content["choices"], key=lambda choice: choice["index"])
        return [Answer(one["token_ids"], one["logprobs"]["token_logprobs"], one["finish_reason"]) for one in choices]

    def likeliest(self, content: Any) -> float:
        return max(content["choices"][0]["logprobs"]["top_logprobs"][0].values())

    def _model_name(self) -> str:
        if self.version is not None and isinstance(self._sender, AdapterFolders):
            return self._sender.name(self.version)
        if self._model is None:
            served = self.server.ask("/v1/models", get=True)
            try:
                self._model = str(next(card["id"] for card in served["data"] if not card.get("parent")))
            except (LookupError, TypeError, AttributeError, StopIteration):
                raise nonsense(f"{self.server.url}/v1/models", "the name of no model", served) from None
        return self._model
