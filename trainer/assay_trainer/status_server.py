"""The run's HTTP server: /status for programs and people, /metrics for Prometheus, /healthz for
whoever may start the run again."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SOCK_STREAM, getaddrinfo
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from assay_trainer.settings import Status as Settings
from assay_trainer.status import Status, as_json, sick

_REQUEST_SECONDS = 10.0


class _Exported(Collector):
    """The state at the moment of a scrape, as Prometheus's metrics."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        state, now = self._status.state, self._status.clock()
        for name, help_, value in (
            ("step", "The last finished step.", state.step),
            ("steps", "Steps of the whole run.", state.of),
            ("reward", "Mean reward of the last step's judged samples.", state.reward),
            ("score", "Greedy score of the last evaluation.", state.score),
            ("score_low", "Lower end of its interval.", state.low),
            ("score_high", "Upper end of its interval.", state.high),
            ("sample_at_1", "Mean score of a sampled completion.", state.sample_at_1),
            ("tokens_per_second", "Drawn tokens, in the last steps.", state.tokens_per_second),
            ("step_seconds", "Seconds of a step, in the last steps.", state.seconds_per_step),
            ("eta_seconds", "Seconds that the rest will take.", state.eta_seconds),
            ("progress_age_seconds", "Since the last finished step.", now - state.progressed),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"assay_trainer_{name}", help_, value=value)
        drawn = "Tokens drawn since the process began."
        yield CounterMetricFamily("assay_trainer_tokens", drawn, value=state.tokens)
        families = (
            ("phase", "1 for what is going on.", {state.phase: 1.0}),
            ("engine", "1 where an engine is usable.", {e.url: e.usable for e in state.engines}),
            ("alarm", "1 where it stops the run, else 0.", {a.kind: a.stop for a in state.alarms}),
            ("metric", "Numbers of the last step, as in metrics.jsonl.", state.metrics),
        )
        for label, help_, values in families:
            name = {"engine": "engine_usable"}.get(label, label)
            family = GaugeMetricFamily(f"assay_trainer_{name}", help_, labels=[label])
            for key, value in values.items():
                family.add_metric([key], float(value))
            yield family


class StatusError(Exception):
    """The server cannot begin; the message says why and what to do."""


class Server:
    """Serves a status over HTTP from threads of its own, as a context manager.

    Args:
        status: what is told.
        settings: the job's `status`. Port 0 takes any free one.

    Raises:
        StatusError: it cannot listen there.
    """

    def __init__(self, status: Status, settings: Settings) -> None:
        host, port = settings.host, settings.port
        registry = CollectorRegistry()
        registry.register(_Exported(status))

        def answer(path: str) -> tuple[int, str, bytes] | None:
            state, now = status.state, status.clock()
            if path == "/status":
                content = json.dumps(as_json(state, now), ensure_ascii=False, indent=2)
                return 200, "application/json", content.encode() + b"\n"
            if path == "/metrics":
                return 200, CONTENT_TYPE_LATEST, generate_latest(registry)
            if path == "/healthz":
                reason = sick(state, now, settings.progressSeconds)
                text = f"{reason or 'ok'}\n".encode()
                return (503 if reason else 200), "text/plain; charset=utf-8", text
            return None

        try:
            self._server = _listening(host, port, answer)
        except OSError as reason:
            raise StatusError(
                f"status.port: cannot listen on {host} port {port} ({reason.strerror}): set "
                "another status.port, or end what listens there"
            ) from reason
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="status", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _listening(
    host: str, port: int, answer: Callable[[str], tuple[int, str, bytes] | None]
) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        # A client that never ends its request gives its thread back after this.
        timeout = _REQUEST_SECONDS

        def do_GET(self) -> None:
            found = answer(self.path.partition("?")[0])
            code, kind, body = found or (404, "text/plain", b"/status, /metrics, /healthz\n")
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A probe every few seconds is no news."""

    family, *_, address = getaddrinfo(host, port, type=SOCK_STREAM)[0]

    class Listening(ThreadingHTTPServer):
        address_family = family
        daemon_threads = True
        # Of socketserver's 5, a few clients that say nothing would make others wait for seconds.
        request_queue_size = 128

        def server_bind(self) -> None:
            # http.server's own would ask the name service for the address's name, which may hang.
            socketserver.TCPServer.server_bind(self)

    return Listening((str(address[0]), port), Handler)
