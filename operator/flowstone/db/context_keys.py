"""Puts the keys of signed contexts into the database, as the installer; nobody but the owner reads them there."""

from __future__ import annotations

import psycopg

from flowstone.tenant.signing import ContextKeys, pads


def install_context_keys(connection: psycopg.Connection[tuple[object, ...]], keys: ContextKeys) -> bool:
    """Make the database accept what these keys sign, and nothing else; returns whether anything changed.

    The keys travel as COPY data, which no setting logs.

    Args:
        connection: The installer's: a superuser, or a member of `flowstone_owner`.
        keys: One key, or the new and the old one while the key is rotated.
    """
    wanted = [(slot, *pads(key)) for slot, key in enumerate(keys.keys, start=1)]
    with connection.transaction():
        connection.execute("LOCK TABLE flowstone.context_key IN SHARE ROW EXCLUSIVE MODE")  # others may do the same
        query = "SELECT slot, inner_pad, outer_pad FROM flowstone.context_key ORDER BY slot"
        if connection.execute(query).fetchall() == wanted:
            return False
        connection.execute("DELETE FROM flowstone.context_key")
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY flowstone.context_key FROM STDIN (FORMAT binary)") as copy,
        ):
            copy.set_types(["int2", "bytea", "bytea"])
            for row in wanted:
                copy.write_row(row)
        return True
