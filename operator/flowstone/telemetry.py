"""Logs, metrics and health: what an operator's people look at.

A log line is a constant event name and key-values in JSON. Metrics live in a registry that is handed around,
so that two operators in one process (tests) do not share counters.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

Logger = structlog.stdlib.BoundLogger


def configure_logging(level: int = logging.INFO) -> Logger:
    """Send structlog's and the standard library's lines to stdout as JSON; returns the root logger."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it logs each event of each object
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logger: Logger = structlog.get_logger("flowstone")
    return logger


class Metrics:
    """The `flowstone_*` metrics; the field's names say what each counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.reconciles = self._counter("reconciles", "Reconciles by kind and result.", "kind", "result")
        self.seconds = Histogram(
            "flowstone_reconcile_seconds", "Duration of a reconcile.", ["kind"], registry=self.registry
        )
        self.batches = self._counter("batches", "Batches by what happened to them.", "event")
        self.partitions = self._counter("partitions", "Partitions settled, by state.", "state")
        self.api = self._counter("api_requests", "Requests to the API server.", "verb", "status")
        self.queue_depth = self._gauge("queue_depth", "Keys that wait for a reconcile.")
        self.isolation_verified = self._gauge("isolation_verified", "Whether tenants' isolation was proven: 1 or 0.")
        self.isolation_failed = self._gauge("isolation_checks_failed", "Checks and attacks of the proof that failed.")
        self.isolation_time = self._gauge("isolation_proven_timestamp_seconds", "Unix time of the last attacks.")

    def isolation(self, verified: bool, failed: int, at: float) -> None:
        """Note what the proof of isolation found."""
        self.isolation_verified.set(verified)
        self.isolation_failed.set(failed)
        self.isolation_time.set(at)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"flowstone_{name}", text, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"flowstone_{name}", text, list(labels), registry=self.registry)


@dataclass
class Health:
    """What stands between this replica and its work, by subject; an empty dict means ready.

    Only what cannot be written to a resource's status belongs here: the ledger's schema does not.
    """

    problems: dict[str, str] = field(default_factory=dict)

    def report(self, subject: str, problem: str | None) -> bool:
        """Set or, with None, clear a subject's problem; True when that changed something."""
        before = self.problems.get(subject)
        if problem is None:
            self.problems.pop(subject, None)
        else:
            self.problems[subject] = problem
        return before != problem
