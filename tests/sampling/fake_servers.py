"""A small server of the tests' own: the routes of vLLM and SGLang that samplers call, over a tiny model.

It is written after the servers' documents and sources, and samples with plain torch. What it cannot show is how the
real ones behave beyond their documented answers.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Optional, Union

import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from trl_step.sampling.sampler import Weights

Reply = tuple[int, Any]
TOKEN = "secret-token"
CHANNELS: dict[int, SimpleQueue[bytes]] = {}
"""What `connect_by_queue` opened, by port."""


class RouteError(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FakeServer:
    """Starts with `model`, and again with it after `restart`.

    Attributes:
        calls: (path, body) of each request
        mischief: for the next requests, oldest first: a status; seconds to wait; "drop"; or a function that changes
            the answer. None: nothing.
    """

    def __init__(self, model: Any, logprobs: str = "processed", port: int = 0) -> None:
        self.first = copy.deepcopy(model).eval()
        self.logprobs = logprobs
        self.calls: list[tuple[str, Any]] = []
        self.mischief: deque[Union[int, float, str, Callable[[Any], Any], None]] = deque()
        self._lock = threading.Lock()
        self._start(port)

    def _start(self, port: int) -> None:
        self.model = copy.deepcopy(self.first)
        self.adapters: dict[str, Any] = {}
        self.label = "default"
        self.paused = False
        self.channel: Optional[SimpleQueue[bytes]] = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.handle(self, None)

            def do_POST(self) -> None:
                server.handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"null"))

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def restart(self) -> None:
        """Stop, and start at the same address with the first weights."""
        self.stop()
        self._start(self.port)

    def paths(self) -> list[str]:
        return [path for path, _ in self.calls]

    # --- requests ---------------------------------------------------------------------------------------------

    def handle(self, request: Any, body: Any) -> None:
        path = request.path
        self.calls.append((path, body))
        with self._lock:
            trick = self.mischief.popleft() if self.mischief else None
        if isinstance(trick, float):
            time.sleep(trick)
        if trick == "drop":
            request.connection.close()
            return
        status: int
        answer: Any
        if request.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            status, answer = 401, {"error": f"not {request.headers['Authorization']}"}
        elif isinstance(trick, int):
            status, answer = trick, {"error": {"message": "out of luck " * 200}}
        else:
            try:
                status, answer = 200, self._route(path.split("?")[0], body)
            except RouteError as error:
                status, answer = error.status, {"error": {"message": str(error)}}
        if callable(trick):
            answer = trick(answer)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            request.send_response(status)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
        except OSError:
            pass  # the client has gone

    def _route(self, path: str, body: Any) -> Any:
        routes: Mapping[str, Callable[[Any], Any]] = {
            "/v1/models": lambda _: {"data": [{"id": "tiny"}, *({"id": n, "parent": "tiny"} for n in self.adapters)]},
            "/v1/completions": self._completions,
            "/v1/load_lora_adapter": self._load_adapter,
            "/v1/unload_lora_adapter": self._unload_adapter,
            "/get_world_size": lambda _: {"world_size": 1},
            "/weight_info": lambda _: {"weight_version": self.label},
            "/pause": lambda _: self._pause(True),
            "/resume": lambda _: self._pause(False),
            "/init_weight_transfer_engine": self._join,
            "/start_weight_update": lambda body: {"message": str(body["is_checkpoint_format"])},
            "/update_weights": self._receive,
            "/finish_weight_update": self._finish,
            "/reset_prefix_cache": lambda _: b"",
            "/model_info": lambda _: {"weight_version": self.label},
            "/generate": self._generate,
            "/update_weights_from_disk": self._from_disk,
        }
        if path not in routes:
            raise RouteError(404, f"no route {path}")
        return routes[path](body)

    # --- vLLM -------------------------------------------------------------------------------------------------

    def _completions(self, body: Any) -> Any:
        if self.paused:
            raise RouteError(503, "paused")
        name = body["model"]
        if name != "tiny" and name not in self.adapters:
            raise RouteError(404, f"The model `{name}` does not exist.")
        model = self.adapters.get(name, self.model)
        choices = []
        for index in range(body["n"]):
            ends = set(body["stop_token_ids"]) | (set() if body["ignore_eos"] else {tiny.EOS})
            drawn = list(self._draw(model, body["prompt"], body["max_tokens"], body, ends, body["stop"], True))
            ids = [token for token, *_ in drawn]
            choices.append(
                {
                    "index": index,
                    "token_ids": ids,
                    "finish_reason": drawn[-1][3],
                    "logprobs": {
                        "token_logprobs": [logprob for _, logprob, *_ in drawn],
                        "top_logprobs": [{"w": most} for *_, most, _ in drawn],
                    },
                }
            )
        return {"choices": choices[::-1]}  # in no order that a client may count on

    def _pause(self, paused: bool) -> Any:
        self.paused = paused
        return {"status": "paused" if paused else "resumed"}

    def _join(self, body: Any) -> Any:
        info = body["init_info"]
        assert info["rank_offset"] == 1
        assert info["world_size"] == 2
        while info["master_port"] not in CHANNELS:  # as the workers of a real one wait for the trainer
            time.sleep(0.01)
        self.channel = CHANNELS[info["master_port"]]
        return {"message": "Weight transfer initialized"}

    def _receive(self, body: Any) -> Any:
        assert self.paused
        assert self.channel is not None
        info = body["update_info"]
        weights = self.model.state_dict()
        for name, kind, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            tensor = torch.frombuffer(bytearray(self.channel.get(timeout=60)), dtype=getattr(torch, kind)).view(shape)
            weights[name].copy_(tensor)
        return {"message": "Weights updated"}

    def _finish(self, body: Any) -> Any:
        self.label = body["weight_version"]
        return {"message": "Weight update finished"}

    def _load_adapter(self, body: Any) -> Any:
        if body["lora_name"] in self.adapters:
            raise RouteError(400, "already loaded")
        model = copy.deepcopy(self.first)
        model.load_state_dict(load_file(Path(body["lora_path"]) / "adapter_model.safetensors"), strict=False)
        self.adapters[body["lora_name"]] = model
        return b"Success: added"

    def _unload_adapter(self, body: Any) -> Any:
        if body["lora_name"] not in self.adapters:
            raise RouteError(404, "not found")
        del self.adapters[body["lora_name"]]
        return b"Success: removed"

    # --- SGLang -----------------------------------------------------------------------------------------------

    def _generate(self, body: Any) -> Any:
        wishes = body["sampling_params"]
        answers = []
        for _ in range(wishes["n"]):
            ends = set(wishes["stop_token_ids"]) | (set() if wishes["ignore_eos"] else {tiny.EOS})
            drawn = list(
                self._draw(self.model, body["input_ids"], wishes["max_new_tokens"], wishes, ends, wishes["stop"], False)
            )
            meta = {
                "finish_reason": {"type": drawn[-1][3]},
                "output_token_logprobs": [[logprob, token, None] for token, logprob, *_ in drawn],
                "output_top_logprobs": [[[most, 0, None]] for *_, most, _ in drawn],
                "weight_version": self.label,
            }
            answers.append({"text": "", "output_ids": [token for token, *_ in drawn], "meta_info": meta})
        return answers if wishes["n"] > 1 else answers[0]

    def _from_disk(self, body: Any) -> Any:
        folder = Path(body["model_path"])
        if not (folder / "model.safetensors").exists():
            return {"success": False, "message": f"no weights in {folder}"}
        self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        self.label = body["weight_version"]
        return {"success": True, "message": "Succeeded to update model weights."}

    # --- the model --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw(
        self, model: Any, prompt: list[int], limit: int, wishes: Any, ends: set[int], stops: list[str], cut: bool
    ) -> Iterator[tuple[int, float, float, Optional[str]]]:
        """Token, its log-prob, that of the likeliest token, and why the answer ends after it (None: it goes on)."""
        ids, text = list(prompt), ""
        with self._lock:
            for step in range(limit):
                logits = model(torch.tensor([ids])).logits[0, -1].float()
                temperature = wishes["temperature"] or 1.0
                reported = (logits / (temperature if self.logprobs == "processed" else 1.0)).log_softmax(-1)
                scores = logits / temperature
                if wishes["top_k"] > 0:
                    scores[scores < scores.topk(wishes["top_k"]).values[-1]] = -torch.inf
                    reported = scores.log_softmax(-1) if cut and self.logprobs == "processed" else reported
                token = int(scores.argmax() if wishes["temperature"] == 0 else torch.multinomial(scores.softmax(-1), 1))
                ids.append(token)
                text += f" w{token}"
                over = token in ends or any(stop in text for stop in stops)
                reason = "stop" if over else "length" if step == limit - 1 else None
                yield token, float(reported[token]), float(reported.max()), reason
                if over:
                    return


class TinyWeights(Weights):
    """Of a plain model in this process: a stand-in for a trainer's. Its "adapter" is the output embedding."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.updates = 0

    @property
    def version(self) -> int:
        return self.updates

    def step(self, seed: int) -> None:
        """Another policy: the weights move."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        self.updates += 1

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.model.named_parameters()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().clone() for name, tensor in self.tensors()}, folder / "model.safetensors")

    def save_adapter(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().clone() for name, tensor in self.tensors()}, folder / "adapter_model.safetensors"
        )

    def on_main(self, send: Callable[[], None]) -> None:
        send()


def connect_by_queue(
    address: str, port: int, size: int, device: torch.device
) -> Callable[[], Callable[[torch.Tensor], None]]:
    """In place of NCCL: bytes in a queue of this process."""

    def join() -> Callable[[torch.Tensor], None]:
        channel = CHANNELS[port] = SimpleQueue()
        return lambda tensor: channel.put(tensor.contiguous().numpy().tobytes())

    return join
