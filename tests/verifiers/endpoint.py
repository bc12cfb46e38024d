"""A small real HTTP server that answers as OpenAI-compatible servers and SGLang do."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Reply = Callable[[str, dict[str, Any]], str]


class FakeModel:
    """A server on loopback, as a context manager.

    Attributes:
        reply: from the question and the request's body to the text that is answered.
        weights: what it reports as its weight version; None: it has no such endpoint.
        openai: whether it has OpenAI's endpoints.
        asked: how often each question came.
        bodies: the requests' bodies, as they came.
        refuse: HTTP status by question, for as many times as it says.
        finish: the reason of the end that it tells.
        seconds: how long an answer takes.
        token: what a client has to bring.
        provenance: whether each answer tells its weight version, as SGLang's do.
        kernels: status and JSON that its plugin answers; None: it has no plugin.
    """

    def __init__(self, reply: Reply, *, weights: str | None = "w1", openai: bool = True) -> None:
        self.reply, self.weights, self.openai = reply, weights, openai
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.refuse: dict[str, list[int]] = {}
        self.finish = "stop"
        self.seconds = 0.0
        self.token: str | None = None
        self.provenance = True
        self.kernels: tuple[int, Any] | None = None
        self.after: Callable[[int], None] = lambda count: None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        model = self

        class Handler(_Handler):
            fake = model

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        """Status and JSON."""
        if path == "/v1/models" and self.openai:
            return 200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
        if path == "/model_info" and self.weights is not None:
            return 200, {"model_path": "/models/tiny", "weight_version": self.weights}
        chat = path == "/v1/chat/completions"
        if body is None or not (chat or path == "/generate"):
            missing = 404, {"error": "no such path"}
            return (self.kernels if path == "/assay/kernels" else None) or missing
        question = body["messages"][-1]["content"] if chat else body["text"]
        with self._lock:
            self.asked[question] += 1
            self.bodies.append(body)
            total = self.asked.total()
            if self.refuse.get(question):
                return self.refuse[question].pop(0), {"error": "not now"}
            weights = self.weights
        time.sleep(self.seconds)
        text = self.reply(question, body)
        self.after(total)
        if not chat:
            meta = {"finish_reason": {"type": self.finish}, "completion_tokens": 3}
            return 200, {"text": text, "meta_info": {**meta, "weight_version": weights}}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": self.finish}
        told = {"metadata": {"weight_version": weights}} if weights and self.provenance else {}
        return 200, {"choices": [choice], "usage": {"completion_tokens": 3}, **told}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Head and body in one packet: two would wait for an acknowledgement.
    fake: FakeModel

    def do_GET(self) -> None:
        self._send(None)

    def do_POST(self) -> None:
        self._send(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _send(self, body: dict[str, Any] | None) -> None:
        if self.fake.token and self.headers.get("authorization") != f"Bearer {self.fake.token}":
            status, data = 401, {"error": "who are you?"}
        else:
            status, data = self.fake.answer(self.path, body)
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
