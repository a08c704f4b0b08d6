"""The cluster as a user sees it: kubectl, and waiting with a deadline that tells what was there instead."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
T = TypeVar("T")


def kubeconfig() -> str | None:
    """Path of the kubeconfig in use, or None when there is no cluster."""
    named = os.environ.get("KUBECONFIG") or str(ROOT / ".cluster" / "kubeconfig")
    return named if Path(named).exists() else None


def program(name: str) -> str:
    """The cluster's own kubectl or helm, else the machine's."""
    own = ROOT / ".cluster" / "bin" / name
    return str(own) if own.exists() else name


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one namespace."""

    config: str
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        """The same in another namespace."""
        return Kubectl(self.config, namespace)

    def run(self, *arguments: str, given: str = "", patience: float = 120) -> subprocess.CompletedProcess[str]:
        """Run it, for so many seconds at most; failing is an answer too."""
        command = [program("kubectl"), "--kubeconfig", self.config, "-n", self.namespace, *arguments]
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=patience, check=False)

    def out(self, *arguments: str, given: str = "") -> str:
        """Run it, and return what it printed; failing fails the test."""
        done = self.run(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *manifests: Json) -> str:
        """Apply manifests that must be accepted."""
        return self.out("apply", "-f", "-", given="\n---\n".join(json.dumps(one) for one in manifests))

    def get(self, kind: str, name: str) -> Json:
        """One object; {} when it is not there."""
        done = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        assert done.returncode == 0, done.stderr
        found: Json = json.loads(done.stdout or "{}")
        return found

    def list(self, kind: str, *arguments: str) -> list[Json]:
        """All objects of a kind."""
        found: list[Json] = json.loads(self.out("get", kind, "-o", "json", *arguments))["items"]
        return found

    def status(self, name: str) -> Json:
        """The status of a Backfill."""
        found: Json = self.get("backfill", name).get("status") or {}
        return found


def conditions(status: Json) -> dict[str, Json]:
    """The conditions by type."""
    return {one["type"]: one for one in status.get("conditions") or []}


def wait_for(ask: Callable[[], T], good: Callable[[T], object], *, seconds: float, what: str) -> T:
    """Ask until the answer is good; fails after `seconds` with the last answer."""
    until = time.monotonic() + seconds
    while True:
        answer = ask()
        if good(answer):
            return answer
        assert time.monotonic() < until, f"{what}: not within {seconds} s; last seen: {answer!r}"
        time.sleep(0.2)


def finished(kubectl: Kubectl, name: str, *, seconds: float = 120) -> Json:
    """Wait until a Backfill is finished; returns its status."""
    return wait_for(
        lambda: kubectl.status(name),
        lambda status: conditions(status).get("Finished", {}).get("status") == "True",
        seconds=seconds,
        what=f"Backfill {name} finished",
    )


@dataclass
class JobWatch:
    """Open Jobs over time, seen by a watch of its own."""

    open: set[str] = field(default_factory=set)
    all: set[str] = field(default_factory=set)
    most: int = 0

    def note(self, event: Json) -> None:
        """Take in one event of the watch."""
        job, kind = event["object"], event["type"]
        name = job["metadata"]["name"]
        self.all.add(name)
        if kind == "DELETED" or is_over(job):
            self.open.discard(name)
        else:
            self.open.add(name)
        self.most = max(self.most, len(self.open))


def is_over(job: Json) -> bool:
    """Whether a Job is complete or failed, with no pod left that acts."""
    status = job.get("status") or {}
    done = any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in status.get("conditions") or [])
    return done and not status.get("active", 0) and not status.get("terminating", 0)


@contextmanager
def watch_jobs(kubectl: Kubectl, seen: JobWatch | None = None) -> Iterator[JobWatch]:
    """Watch the namespace's Jobs while the block runs."""
    seen = seen or JobWatch()
    command = [program("kubectl"), "--kubeconfig", kubectl.config, "-n", kubectl.namespace]
    command += ["get", "jobs", "--watch", "--output-watch-events", "-o", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        thread = threading.Thread(target=_read, args=(process, seen), daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            process.terminate()
            thread.join(10)


def _read(process: subprocess.Popen[str], seen: JobWatch) -> None:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        try:
            event = json.loads(text)
        except ValueError:  # not whole yet
            continue
        seen.note(event)
        text = ""


def asset(name: str, dimensions: Sequence[Json], container: Json, **pod: Any) -> Json:
    """An Asset whose pods have one container, and the test code mounted at /code."""
    code = {"name": "code", "configMap": {"name": "code"}}
    mounted = {"volumeMounts": [{"name": "code", "mountPath": "/code"}]}
    environment = [{"name": "PYTHONPATH", "value": "/code"}]
    merged = {"name": "main", "imagePullPolicy": "IfNotPresent", "env": environment} | mounted | container
    spec = {"containers": [merged], "volumes": [code]} | pod
    return {
        "apiVersion": "flowstone.dev/v1alpha1",
        "kind": "Asset",
        "metadata": {"name": name},
        "spec": {"partitionedBy": list(dimensions), "template": {"spec": spec}},
    }


def backfill(name: str, asset_name: str, **spec: Any) -> Json:
    """A Backfill."""
    return {
        "apiVersion": "flowstone.dev/v1alpha1",
        "kind": "Backfill",
        "metadata": {"name": name},
        "spec": {"asset": asset_name, **spec},
    }
