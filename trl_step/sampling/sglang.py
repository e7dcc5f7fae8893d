"""`SGLangSampler`: an SGLang server over HTTP, which reads new weights from a folder."""

from __future__ import annotations

import shutil
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Optional, Union

from trl_step.sampling.http import ServerError, nonsense
from trl_step.sampling.sampler import Weights
from trl_step.sampling.servers import Answer, ServerSampler
from trl_step.sampling.settings import Request, SamplingSettings


class SGLangSampler(ServerSampler):
    """Draws answers from an SGLang server; the model is saved into a folder per version, and the one before removed.

    Args:
        url: of the server
        weights: see `Sampler`; None: the server's weights stay what they are
        folder: of this run, on a file system that the server shares, under the same path; needed with `weights`
        token, timeout, parallel, vocabulary: see `ServerSampler`
    """

    how_to_mend = "Start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB."

    def __init__(
        self,
        url: str = "http://127.0.0.1:30000",
        weights: Optional[Weights] = None,
        folder: Union[str, PathLike[str], None] = None,
        *,
        token: Optional[str] = None,
        timeout: float = 600.0,
        parallel: int = 32,
        vocabulary: Optional[int] = None,
    ) -> None:
        super().__init__(url, weights, token=token, timeout=timeout, parallel=parallel, vocabulary=vocabulary)
        self.folder = None if folder is None else Path(folder).resolve()
        self._sent: Optional[Path] = None

    def update(self, weights: Weights, version: int) -> None:
        if self.folder is None:
            raise ValueError(
                "weights reach SGLang through a folder: give SGLangSampler(folder=FOLDER), which the server reads too"
            )
        folder = self.folder / f"version-{version}"
        weights.save(folder)
        weights.on_main(partial(self._load, folder, version))
        self._sent = folder

    def check_version(self, version: int) -> None:
        try:
            info = self.server.ask("/model_info", get=True)
        except ServerError as error:
            if error.status != 404:
                raise
            info = self.server.ask("/get_model_info", get=True)  # of earlier releases
        self._check_label(info.get("weight_version"), version)

    def post(self, request: Request, count: int, wanted: SamplingSettings) -> tuple[str, dict[str, Any]]:
        parameters = {
            "n": count,
            "max_new_tokens": request.limit,
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "top_k": wanted.top_k or -1,
            "min_p": wanted.min_p,
            "repetition_penalty": wanted.repetition_penalty,
            "min_new_tokens": wanted.min_new_tokens,
            "stop": wanted.stop_strings,
            "stop_token_ids": wanted.end_ids,
            "ignore_eos": not wanted.engine_ends,
        }
        body = {
            "input_ids": request.query,
            "sampling_params": parameters,
            "return_logprob": True,
            "logprob_start_len": -1,
            "top_logprobs_num": 1,
        }
        return "/generate", body

    def answers(self, content: Any) -> list[Answer]:
        found = []
        for one in content if isinstance(content, list) else [content]:
            meta = one["meta_info"]
            if self.weights is not None and self.version is not None:
                self._check_label(meta.get("weight_version"), self.version)
            pairs = [(entry[1], entry[0]) for entry in meta["output_token_logprobs"]]
            found.append(Answer([i for i, _ in pairs], [p for _, p in pairs], meta["finish_reason"]["type"]))
        return found

    def likeliest(self, content: Any) -> float:
        one = content[0] if isinstance(content, list) else content
        return float(one["meta_info"]["output_top_logprobs"][0][0][0])

    def _load(self, folder: Path, version: int) -> None:
        body = {"model_path": str(folder), "weight_version": str(version), "flush_cache": True}
        answer = self.server.ask("/update_weights_from_disk", body)
        if not isinstance(answer, dict) or answer.get("success") is not True:
            raise nonsense(self.server.url, f"that it did not take over {folder}", answer)
        if self._sent is not None and self._sent != folder:
            shutil.rmtree(self._sent, ignore_errors=True)

    def _check_label(self, found: Any, version: int) -> None:
        if found != str(version):
            raise ServerError(
                f"{self.server.url} holds weights of version {found!r}, not {version}: it may have started anew; the "
                "next call sends them again"
            )
