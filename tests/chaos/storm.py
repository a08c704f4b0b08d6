"""What is done to a cluster while it works: seeded, counted, and undone at the end.

Operators and workers reach Postgres and the API server through proxies on this machine, which cut or freeze at random
moments. Workers are killed in two ways: their processes, so that they crash, and their pods, so that they are gone for
Kubernetes while they still run. A node is lost by stopping its kubelet: for long enough the control plane declares it
unreachable and evicts its pods, whose processes work on; for a short time nobody does as the API server says.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.layout import project_layout
from tests.e2e.kubectl import Kubectl
from tests.postgres.proxy import Proxy

OPERATORS = ("-l", "app.kubernetes.io/name=flowstone,app.kubernetes.io/component=operator")


@dataclass(frozen=True)
class Ways:
    """The proxies between those who talk."""

    api: Proxy
    operator_postgres: Proxy
    worker_postgres: Proxy


@dataclass
class Storm:
    """Faults of one kind after another, drawn from a seed.

    Attributes:
        node_seconds: How long the node's kubelet stands still when the node is lost; once.
        pause: Longest wait between two faults, in seconds; an operator needs a dozen to be back.
        caps: (time since the epoch, maxParallel) of each edit, in order.
        done: How often what was done.
    """

    seed: int
    operator: Kubectl
    namespace: Kubectl
    ways: Ways
    uid: str
    node_seconds: float
    pause: float
    caps: list[tuple[float, int]]
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)  # noqa: S311 - a reproducible storm
        self._stop = threading.Event()
        self._faults: list[Callable[[], None]] = [
            self.kill_operators,
            self.crash_workers,
            self.crash_workers,
            self.delete_workers,
            self.edit,
            self.edit,
            lambda: self.cut("operator-postgres", self.ways.operator_postgres),
            lambda: self.cut("worker-postgres", self.ways.worker_postgres),
            lambda: self.cut("api-server", self.ways.api),
        ]

    @contextmanager
    def raging(self) -> Iterator[None]:
        """Do one thing after another while the block runs, and let everything flow again afterwards."""
        threads = [threading.Thread(target=self._rage), threading.Thread(target=self._lose_node)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _rage(self) -> None:
        pending: list[Callable[[], None]] = []
        while not self._stop.wait(self._dice.uniform(1, self.pause)):
            if not pending:  # every kind comes before any comes again
                pending = self._dice.sample(self._faults, len(self._faults))
            pending.pop()()

    # -- faults -------------------------------------------------------------------------------------------------------

    def kill_operators(self) -> None:
        """Operator pods go without notice, one or all."""
        names = [pod["metadata"]["name"] for pod in self.operator.list("pods", *OPERATORS)]
        victims = self._dice.sample(names, min(len(names), self._dice.choice([1, 1, 2])))
        self.operator.run("delete", "pods", *victims, "--grace-period=0", "--force", "--wait=false")
        self.done["operator pods killed"] += len(victims)

    def crash_workers(self) -> None:
        """Worker processes get SIGKILL."""
        found = worker_processes(self.uid)
        for pid in self._dice.sample(found, min(len(found), self._dice.choice([1, 2]))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.done["worker processes killed"] += 1

    def delete_workers(self) -> None:
        """Worker pods vanish from the API server while their processes still run."""
        label = ("-l", f"flowstone.dev/backfill-uid={self.uid}", "--field-selector=status.phase=Running")
        names = [pod["metadata"]["name"] for pod in self.namespace.list("pods", *label)]
        victims = self._dice.sample(names, min(len(names), self._dice.choice([1, 3])))
        if victims:
            self.namespace.run("delete", "pods", *victims, "--grace-period=0", "--force", "--wait=false")
            self.done["worker pods deleted by force"] += len(victims)

    def cut(self, name: str, way: Proxy) -> None:
        """A way is closed, or stands still, for seconds."""
        kind = self._dice.choice(["cut", "frozen"])
        (way.cut if kind == "cut" else way.freeze)()
        self._stop.wait(self._dice.uniform(1, 6))
        way.thaw()
        self.done[f"{name} {kind}"] += 1

    def edit(self) -> None:
        """`maxParallel` goes up or down."""
        cap = self._dice.choice([2, 4, 8, 12, 16])
        self.caps.append((time.time(), cap))
        patch = json.dumps({"spec": {"maxParallel": cap}})
        self.namespace.out("patch", "backfill", "b", "--type=merge", "-p", patch)
        self.done["maxParallel edited"] += 1

    def _lose_node(self) -> None:
        """Stop the kubelet once, some time into the storm; it goes on in any case."""
        if self._stop.wait(self._dice.uniform(8, 12)):
            return
        pid = json.loads((project_layout().pids / "kubelet.json").read_text())["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            self._stop.wait(self.node_seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.done[f"node lost for {self.node_seconds:.0f} s"] += 1


def worker_processes(uid: str) -> list[int]:
    """Processes on this machine that work for a Backfill."""
    mark = f"FLOWSTONE_BACKFILL={uid}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return sorted(found)
