"""What a replica knows of Jobs from its watches."""

from __future__ import annotations

from typing import Any

from flowstone.backfill.edges.seen_jobs import SeenJobs
from flowstone.executor.jobs import LABEL_UID


def job(namespace: str, name: str, uid: str | None = "u") -> dict[str, Any]:
    """A Job as a watch tells of it, with all that belongs to one."""
    labels = {} if uid is None else {LABEL_UID: uid}
    metadata = {"name": name, "namespace": namespace, "uid": "1", "labels": labels, "managedFields": [{}]}
    return {"metadata": metadata, "spec": {"template": {}}, "status": {"active": 1}}


def names(seen: SeenJobs, namespace: str) -> list[str] | None:
    """The names of the Jobs of Backfill `u`, the server having been asked just now."""
    seen.compared(namespace, "u")
    found = seen.of(namespace, "u")
    return None if found is None else [one["metadata"]["name"] for one in found]


def test_of_each_job_only_what_tells_of_its_run_is_kept() -> None:
    """There may be many thousands, and each replica hears of all."""
    seen = SeenJobs(clock=lambda: 0)
    seen.follow(None, anew=True)
    seen.take("ADDED", job("a", "j"))
    seen.compared("a", "u")
    essence = {"metadata": {"name": "j", "uid": "1", "deletionTimestamp": None}, "status": {"active": 1}}
    assert seen.of("a", "u") == [essence]


def test_a_deleted_job_is_forgotten_and_a_foreign_one_never_known() -> None:
    """With its last Job a Backfill is unknown again; a deletion of what was not known changes nothing."""
    seen = SeenJobs(clock=lambda: 0)
    seen.follow(None, anew=True)
    for name in ("one", "two"):
        seen.take("ADDED", job("a", name))
    seen.take("ADDED", job("a", "foreign", None))
    seen.take("DELETED", job("a", "one"))
    assert names(seen, "a") == ["two"]
    seen.take("DELETED", job("a", "two"))
    seen.take("DELETED", job("a", "never seen"))
    assert names(seen, "a") is None


def test_a_watch_that_begins_anew_forgets_what_the_last_one_told() -> None:
    """What was deleted meanwhile would else stay for ever; a watch that goes on is told of deletions."""
    seen = SeenJobs(clock=lambda: 0)
    seen.follow(None, anew=True)
    seen.take("ADDED", job("a", "j"))
    seen.lose(None)
    seen.follow(None, anew=False)
    assert names(seen, "a") == ["j"]
    seen.lose(None)
    seen.follow(None, anew=True)
    assert names(seen, "a") is None


def test_each_namespace_has_a_watch_of_its_own() -> None:
    """Where an operator serves some namespaces, the end of one watch says nothing of the others."""
    seen = SeenJobs(clock=lambda: 0)
    for namespace in ("a", "b"):
        seen.follow(namespace, anew=True)
        seen.take("ADDED", job(namespace, f"in {namespace}"))
    seen.lose("a")
    assert (names(seen, "a"), names(seen, "b")) == (None, ["in b"])
    seen.follow("a", anew=True)
    assert (names(seen, "a"), names(seen, "b")) == (None, ["in b"])
