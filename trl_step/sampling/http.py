"""JSON over HTTP, with the standard library alone: no redirects, no proxies, no cookies; and many calls at once."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Optional, TypeVar
from urllib.parse import urlsplit

Result = TypeVar("Result")
MOST_BYTES = 2**26
"""Size of an answer, if the caller does not know better."""
SHOWN = 500
"""Characters of a server's own text that an error shows."""
PASSING = (429, 500, 502, 503, 504)
"""Statuses after which the same request may well succeed."""


class ServerError(RuntimeError):
    """A server was not reached, refused a request, or answered nonsense.

    Attributes:
        status: of HTTP; None: no complete answer came, so the server may be gone, or may have started anew
    """

    def __init__(self, message: str, status: Optional[int] = None) -> None:
        super().__init__(message)
        self.status = status


def nonsense(url: str, problem: str, content: Any) -> ServerError:
    """The error for a JSON answer that has `problem`, with its beginning."""
    text = repr(content)
    return ServerError(f"{url} sent {problem}: {text if len(text) <= SHOWN else text[:SHOWN] + '...'}", 200)


class Server:
    """One server.

    Args:
        url: such as "http://127.0.0.1:8000"; https works too. A path in it goes before those of the calls.
        token: sent as "Authorization: Bearer ..."; errors do not show it
        timeout: seconds for one answer to arrive as a whole
        retries: how often a call that may be repeated is repeated, after `PASSING` statuses alone
        pause: seconds before the first repetition, doubled for each further one
    """

    def __init__(
        self, url: str, token: Optional[str] = None, timeout: float = 600.0, retries: int = 3, pause: float = 0.5
    ) -> None:
        parts = urlsplit(url)
        if "@" in url:
            raise ValueError(
                "the url of the server has credentials in it; give them as token=..., so that no log has them"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url={url!r} is not the address of a server; give one such as 'http://127.0.0.1:8000'")
        self.secure = parts.scheme == "https"
        self.host, self.port = parts.hostname, parts.port
        self.path = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc}{self.path}"
        self.token, self.timeout, self.retries, self.pause = token, timeout, retries, pause

    def ask(
        self, path: str, body: Any = None, *, repeatable: bool = False, most_bytes: int = MOST_BYTES, get: bool = False
    ) -> Any:
        """The JSON that the server answers.

        Args:
            path: such as "/v1/completions"
            body: sent as JSON
            repeatable: whether the call changes nothing on the server, so that it may be sent again
            most_bytes: a longer answer is refused
            get: with GET, and no body

        Raises:
            ServerError: there was no answer, or one with a status other than 200 or no JSON in it.
        """
        content = self._send(path, body, repeatable, most_bytes, get)
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ServerError(f"{self.url}{path} did not answer in JSON: {self._shown(content)}", 200) from None

    def tell(self, path: str, body: Any = None) -> None:
        """Post `body`; what the server answers does not matter, but its status does.

        Raises:
            ServerError: see `ask`.
        """
        self._send(path, {} if body is None else body, False, MOST_BYTES, False)

    def _send(self, path: str, body: Any, repeatable: bool, most_bytes: int, get: bool) -> bytes:
        data = None if get else json.dumps(body, allow_nan=False).encode()
        for attempt in range(self.retries + 1):
            status, content = self._once("GET" if get else "POST", path, data, most_bytes)
            if status == 200:
                return content
            if not (repeatable or get) or status not in PASSING or attempt == self.retries:
                break
            time.sleep(self.pause * 2**attempt)
        raise ServerError(f"{self.url}{path} answered {status}: {self._shown(content)}", status)

    def _once(self, method: str, path: str, data: Optional[bytes], most_bytes: int) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=self.timeout)
        headers = {"Accept": "application/json", "Connection": "close"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        deadline = time.monotonic() + self.timeout
        try:
            connection.request(method, self.path + path, body=data, headers=headers)
            response = connection.getresponse()
            content = self._read(response, path, deadline, most_bytes)
        except TimeoutError:
            raise ServerError(f"{self.url}{path} did not answer within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(
                f"{self.url}{path} was not reached, or the connection broke off: {type(error).__name__}: {error}"
            ) from error
        finally:
            connection.close()
        return response.status, content

    def _read(self, response: http.client.HTTPResponse, path: str, deadline: float, most_bytes: int) -> bytes:
        pieces, size = [], 0
        while piece := response.read1(2**16):
            pieces.append(piece)
            size += len(piece)
            if size > most_bytes:
                raise ServerError(f"{self.url}{path} answers with more than {most_bytes} bytes", response.status)
            if time.monotonic() > deadline:
                raise TimeoutError
        if response.length:  # fewer bytes came than were announced
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(pieces)

    def _shown(self, content: bytes) -> str:
        """The server's own text on one line, shortened, without the token."""
        text = " ".join(content[: 8 * SHOWN].decode(errors="replace").split())
        if self.token:
            text = text.replace(self.token, "***")
        return (text if len(text) <= SHOWN else text[:SHOWN] + "...") or "(nothing)"


def at_once(calls: Sequence[Callable[[], Result]], most: int) -> list[Result]:
    """What `calls` return, in their order; at most `most` run at a time, in threads.

    The first error is raised at once: calls that have begun go on by themselves, and the others are not made.
    """
    waiting = iter(enumerate(calls))
    lock, stopped = threading.Lock(), threading.Event()
    outcomes: SimpleQueue[tuple[int, Optional[Result], Optional[BaseException]]] = SimpleQueue()

    def following() -> Iterator[tuple[int, Callable[[], Result]]]:
        while not stopped.is_set():
            with lock:
                got = next(waiting, None)
            if got is None:
                return
            yield got

    def work() -> None:
        for place, call in following():
            try:
                outcomes.put((place, call(), None))
            except BaseException as error:
                outcomes.put((place, None, error))

    for _ in range(min(most, len(calls))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, Any] = {}
    try:
        while len(results) < len(calls):
            place, result, error = outcomes.get()
            if error is not None:
                raise error
            results[place] = result
    finally:
        stopped.set()
    return [results[place] for place in range(len(calls))]
