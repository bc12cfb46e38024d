"""What the operator says about itself: Prometheus metrics and structured logs."""

from __future__ import annotations

import contextlib
import logging
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram
from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["json", "text"]

RECONCILE_SECONDS = Histogram(
    "assay_reconcile_seconds",
    "Seconds from the start of a pass over one object to its end.",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
RECONCILE_ERRORS = Counter(
    "assay_reconcile_errors_total", "Passes that failed.", ["kind", "reason"]
)
QUEUE = Gauge("assay_queue", "Actors that wait for a free slot.")
ACTORS = Gauge("assay_actors", "Actors: one for each custom resource, on the leader only.")
LEADER = Gauge("assay_leader", "1 while this process leads.")
API_WRITES = Counter("assay_api_writes_total", "Writing API requests.", ["verb", "kind"])
VIEW_OBJECTS = Gauge("assay_view_objects", "Kubernetes objects held in memory.")
WATCH_AGE = Gauge("assay_watch_age_seconds", "Seconds since a watch last said anything.", ["kind"])
WATCH_MISSED = Counter(
    "assay_watch_missed_total", "States that a list showed and the watch never did.", ["kind"]
)

_OF_SERVICE = ("namespace", "service")
REPLICAS_WANTED = Gauge(
    "assay_autoscaling_replicas_wanted", "Engine replicas as decided.", _OF_SERVICE
)
REPLICAS_REQUIRED = Gauge(
    "assay_autoscaling_replicas_required",
    "Engine replicas that the load requires by the objectives; absent while it is not known.",
    _OF_SERVICE,
)
REPLICA_CAPACITY = Gauge(
    "assay_autoscaling_replica_requests_per_second",
    "Requests/s that one replica bears within the objectives for times, as learned.",
    _OF_SERVICE,
)
DECISIONS = Counter("assay_autoscaling_decisions_total", "Decisions about replicas.", ["reason"])


def tell_of_service(metric: Gauge, namespace: str, service: str, value: float | None) -> None:
    """Sets one service's value; None takes it away."""
    if value is not None:
        metric.labels(namespace, service).set(value)
    else:
        # One that has no value there has none to take away.
        with contextlib.suppress(KeyError):
            metric.remove(namespace, service)


def configure_logging(log_format: LogFormat, level: str) -> None:
    """Send all logs to stderr, as one JSON object a line or as text.

    Args:
        log_format: `json` for machines, `text` for a shell.
        level: a level's name, such as `INFO`.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(
            JsonFormatter(
                "{asctime}{levelname}{name}{message}",
                style="{",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf tells of every event of every object: at our rates that is a cost and no information.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
