"""Where a connection string leads, as libpq would resolve it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict


@dataclass(frozen=True, slots=True)
class Place:
    """Host, port and database of a server, without any credentials."""

    host: str
    port: str
    database: str


def place_of(conninfo: str) -> Place:
    """The place that `conninfo`, completed by libpq's environment variables, means."""
    given = conninfo_to_dict(conninfo)

    def pick(keyword: str, variable: str, default: str) -> str:
        return str(given.get(keyword) or os.environ.get(variable) or default)

    user = pick("user", "PGUSER", "postgres")
    return Place(
        pick("host", "PGHOST", "localhost"), pick("port", "PGPORT", "5432"), pick("dbname", "PGDATABASE", user)
    )
