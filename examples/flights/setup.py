"""The set-up step: load all flights of 2013 into Postgres, once, and make the airlines' own table.

Runs as a Kubernetes Job (setup.yaml) with a login that may create schemas; libpq's PG* variables say where. Loading is
one transaction, and making the table another: each is there completely or not at all, and a second run changes nothing.
"""

import hashlib
import os
import zipfile
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from flowstone.db import tenant_table  # noqa: F401 - registers op.tenant_table

HERE = Path(__file__).resolve().parent

COLUMNS = (
    "year, month, day, dep_time, sched_dep_time, dep_delay, arr_time, sched_arr_time, arr_delay, carrier, flight,"
    " tailnum, origin, dest, air_time, distance, hour, minute, time_hour"
)
COPY = f"COPY flights.flight ({COLUMNS}) FROM STDIN WITH (FORMAT csv, HEADER match, NULL 'NA')"
CHUNK = 1 << 20


def setup(connection: psycopg.Connection, data: Path) -> int:
    """Load `data` (a zip with one CSV file); the number of rows loaded, 0 when they were there already."""
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    with connection.transaction(), connection.cursor() as cursor:
        loaded = _loaded(cursor)
        if loaded == digest:
            return 0
        if loaded:
            raise SystemExit("schema flights holds other data; DROP SCHEMA flights CASCADE first to replace it")
        cursor.execute((HERE / "schema.sql").read_bytes())
        rows = _copy(cursor, data)
        cursor.execute("CREATE INDEX ON flights.flight (flown_on)")
        cursor.execute("INSERT INTO flights.source (file, sha256, rows) VALUES (%s, %s, %s)", (data.name, digest, rows))
    connection.execute("ANALYZE flights.flight")
    return rows


def _loaded(cursor: psycopg.Cursor) -> str | None:
    cursor.execute("SELECT to_regclass('flights.source') IS NOT NULL")
    if cursor.fetchone() != (True,):
        return None
    row = cursor.execute("SELECT sha256 FROM flights.source").fetchone()
    return row[0] if row else None


def _copy(cursor: psycopg.Cursor, data: Path) -> int:
    with zipfile.ZipFile(data) as archive, archive.open(archive.namelist()[0]) as file, cursor.copy(COPY) as copy:
        while chunk := file.read(CHUNK):
            copy.write(chunk)
    return cursor.rowcount


def airlines_table(connection: sa.Connection) -> bool:
    """Make flights.airline_months, as a revision of Alembic would; False when it was there already."""
    if sa.inspect(connection).has_table("airline_months", "flights"):
        return False
    op = Operations(MigrationContext.configure(connection))
    op.tenant_table(
        "airline_months",
        sa.Column("month", sa.Date, nullable=False),
        sa.Column("flights", sa.Integer, nullable=False),
        sa.Column("cancelled", sa.Integer, nullable=False),
        sa.Column("mean_departure_delay", sa.Double, comment="minutes; NULL: none departed"),
        sa.Column("miles", sa.BigInteger, nullable=False),
        key=["month"],
        schema="flights",
    )
    op.execute("GRANT SELECT ON flights.flight TO flowstone_tenant")  # every airline may read all flights
    return True


def main() -> None:
    """Load the file that lies beside this one, and make the table."""
    data = Path(os.environ.get("FLIGHTS_DATA", HERE / "flights.csv.zip"))
    with psycopg.connect("", autocommit=True) as connection:
        rows = setup(connection, data)
    print(f"{rows} flights loaded" if rows else "the flights were loaded before; nothing to do")
    with sa.create_engine("postgresql+psycopg://").begin() as connection:  # where PG* say, as above
        if airlines_table(connection):
            print("table flights.airline_months made; each airline's login will see its own rows")


if __name__ == "__main__":
    main()
