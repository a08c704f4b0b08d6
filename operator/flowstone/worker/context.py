"""What a user's function is given for each partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowstone.errors import LedgerUnavailable
from flowstone.partition.keys import Key, KeyElement
from flowstone.worker.keys import Window

if TYPE_CHECKING:
    from psycopg import Connection


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition to compute: its key, its time, and a connection whose transaction is its outcome.

    Attributes:
        key: The typed key: a date, a datetime, a string, or a tuple of those.
        text: The key's canonical text.
        values: The key's elements by the name of their dimension.
        window: `start` and `end` of the time it covers, in UTC, the end left out; None where the key has no
            dimension of time, or several.
        tenant: The tenant's id, or None for work without a tenant.
        attempt: 1 for the first try, then one more for each failure that was charged.
        asset: The asset's id.
        backfill: The Backfill's name.
    """

    key: Key
    text: str
    values: Mapping[str, KeyElement]
    window: Window | None
    tenant: str | None
    attempt: int
    asset: str
    backfill: str
    _connection: Connection[Any] | None = field(default=None, repr=False)

    @property
    def connection(self) -> Connection[Any]:
        """The open transaction in which success is recorded together with what is written here.

        Never commit it or roll it back; `with p.connection.transaction():` makes savepoints.

        Raises:
            LedgerUnavailable: this worker was given no database.
        """
        if self._connection is None:
            raise LedgerUnavailable("This worker has no database (PGHOST is not set), so there is no connection.")
        return self._connection
