"""A small real HTTP server that answers as an SGLang engine does, and misbehaves as told."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

VOCABULARY = 100
Answer = dict[str, Any] | list[Any]
Fault = Callable[["EngineServer", Any], Any]
"""From the body (None for GET) to what is answered: JSON, (status, JSON), or raises Died."""


class Died(Exception):
    """The connection ends in the middle of an answer."""


class EngineServer:
    """An engine on loopback.

    Attributes:
        version: of the weights that it serves.
        path: where they came from.
        faults: by path, what is done instead of answering; each once.
        always: the same, each time.
        asked: how often each path was asked.
        bodies: what came to /generate.
        drawn_with: the versions that prompts were answered with.
        token: what a client has to bring.
        most: the most requests to /generate at one time.
        slowly: seconds that a completion takes.
        released: set when the test is over, for what hangs.
        connections: those that are open.
    """

    def __init__(self, version: str = "default") -> None:
        self.version, self.path = version, "/models/base"
        self.faults: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.drawn_with: list[str] = []
        self.token: str | None = None
        self.slowly = 0.0
        self.most = self._now = 0
        self.released = threading.Event()
        self.connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._port = 0
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self, version: str | None = None) -> None:
        """Starts, on the port of before; with a version: as a new process with those weights."""
        if version is not None:
            self.version, self.path = version, "/models/base"
        engine = self

        class Handler(_Handler):
            served = engine

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """As after kill -9: connections end, and no more are taken."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, path: str, body: Any) -> Any:
        with self._lock:
            self.asked[path] += 1
            fault = self.faults[path].pop(0) if self.faults.get(path) else self.always.get(path)
        if fault:
            return fault(self, body)
        match path:
            case "/model_info":
                return {"model_path": self.path, "weight_version": self.version}
            case "/update_weights_from_disk":
                if not Path(body["model_path"]).is_dir():
                    return 400, {"success": False, "message": "Failed to get weights iterator"}
                self.version, self.path = body["weight_version"], body["model_path"]
                return {"success": True, "message": "Succeeded to update model weights."}
            case "/generate":
                return self.draw(body)
        return 404, {"detail": "Not Found"}

    def draw(self, body: dict[str, Any]) -> Answer:
        with self._lock:
            self.bodies.append(body)
            self.drawn_with.append(self.version)
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.slowly)
        with self._lock:
            self._now -= 1
        sampling = body["sampling_params"]
        if isinstance(sampling, list):
            # One completion for each entry, drawn by its seed.
            return [completion([s["sampling_seed"] % 50 + 1, 2], self.version) for s in sampling]
        several = [completion([i + 1, 2], self.version) for i in range(sampling["n"])]
        return several if len(several) > 1 else several[0]


def completion(ids: list[int], version: str, **meta: Any) -> dict[str, Any]:
    """One completion as SGLang tells it."""
    return {
        "text": "",
        "output_ids": ids,
        "meta_info": {
            "finish_reason": {"type": "stop", "matched": 2},
            "weight_version": version,
            "output_token_logprobs": [[-0.5 - token / 100, token, None] for token in ids],
            **meta,
        },
    }


def hangs(engine: EngineServer, body: Any) -> Any:
    """No answer until the test is over."""
    engine.released.wait()
    raise Died


def dies(engine: EngineServer, body: Any) -> Any:
    """Ends the connection in the middle of an answer."""
    raise Died


def says(answer: Any) -> Fault:
    """Answers that, whatever was asked."""
    return lambda engine, body: answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that have gone, and everything of what is wrong here."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Head and body in one packet: two would wait for an acknowledgement.
    served: EngineServer

    def setup(self) -> None:
        super().setup()
        self.served.connections.add(self.connection)

    def finish(self) -> None:
        self.served.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._send(None)

    def do_POST(self) -> None:
        self._send(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _send(self, body: Any) -> None:
        status, data = 200, None
        if self.served.token and self.headers.get("authorization") != f"Bearer {self.served.token}":
            status, data = 401, {"error": "Unauthorized"}
        else:
            try:
                data = self.served.answer(self.path, body)
            except Died:
                self.send_response(200)
                self.send_header("content-length", "1000")
                self.end_headers()
                self.wfile.write(b'[{"text": "')
                self.close_connection = True
                return
            if isinstance(data, tuple):
                status, data = data
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
