"""One suite for each adapter of the executor's port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flowstone.db.ledger import Ledger
from tests.conformance.jobs_world import JobsWorld, jobs_world
from tests.conformance.processes_world import ProcessesWorld
from tests.conformance.world import CLUSTER, World
from tests.e2e.conftest import cluster, image, namespace, operator
from tests.e2e.kubectl import Kubectl
from tests.postgres.conftest import Place, migrated_server, place

__all__ = ["cluster", "image", "migrated_server", "namespace", "operator", "place"]


@pytest.fixture(
    params=[
        pytest.param("processes", marks=pytest.mark.postgres),
        pytest.param("jobs", marks=pytest.mark.cluster),
    ]
)
def world(request: pytest.FixtureRequest) -> World:
    """The place where batches run."""
    found: World = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def processes(place: Place, tmp_path: Path) -> Iterator[ProcessesWorld]:
    """This machine and a real PostgreSQL."""
    with Ledger.connect(place.operator, cluster=CLUSTER) as ledger:
        made = ProcessesWorld(ledger, place.operator, tmp_path)
        yield made
        made.close()


@pytest.fixture
async def jobs(namespace: Kubectl, image: str) -> AsyncIterator[JobsWorld]:
    """A namespace of the real cluster, and a database of its own on the PostgreSQL there."""
    with jobs_world(namespace, image) as made:
        yield made
        await made.close()
