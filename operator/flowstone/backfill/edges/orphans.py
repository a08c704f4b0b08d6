"""The end of a Backfill whose resource is gone: its Jobs go, its rows are cancelled, its history stays."""

from __future__ import annotations

import asyncio

from flowstone.backfill import job_views
from flowstone.db.ledger import Ledger
from flowstone.db.outcomes import Outcomes
from flowstone.kube.client import Kube
from flowstone.kube.paths import jobs


async def close_orphan(kube: Kube, outcomes: Outcomes, ledger: Ledger, *, namespace: str, uid: str) -> None:
    """End what the ledger still holds open.

    Its Jobs usually go by owner reference. After `kubectl delete --cascade=orphan` they have none, and nobody but us
    would ever take them away; first they go, since a Backfill that is closed is not looked at again.

    Args:
        uid: The Backfill's; one of the same name that was made since is another.
    """
    for job in await kube.list(jobs(namespace), labels=job_views.selector(uid)):
        if not job_views.is_owned(job, uid):
            metadata = job["metadata"]
            await kube.delete(jobs(namespace, metadata["name"]), uid=metadata["uid"])
    await asyncio.to_thread(outcomes.close_orphan, ledger, uid)
