"""`HttpServer`: uvicorn in a thread."""

from __future__ import annotations

import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp

START_SECONDS = 30.0


class HttpServer:
    """Answers what comes to the socket `listening` by `app`, until `close`.

    Raises:
        RuntimeError: it did not start.
    """

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="off",
                loop="asyncio",
                http="h11",
                ws="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=75,  # longer than clients keep a connection: they close it, and lose no request
                timeout_graceful_shutdown=5,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="trl_step endpoint: HTTP", daemon=True
        )
        self._thread.start()
        give_up = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > give_up:
                self.close()
                raise RuntimeError("the server did not start; its log says why")
            time.sleep(0.01)

    def close(self) -> None:
        """Answer what is being answered, for at most five seconds, and end."""
        self._server.should_exit = True
        self._thread.join()
