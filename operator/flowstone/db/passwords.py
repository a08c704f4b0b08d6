"""Passwords that never reach the server, verifiers that never reach its log.

Postgres stores a SCRAM verifier and takes a ready-made one for a password. The verifier is made here, so the
clear text stays on this side. But the verifier is a secret too (whoever has it can try passwords offline), and a
statement that carries it would be logged by `log_statement`, or by a mere failure. So it travels as COPY data,
which no setting logs, and is applied inside a DO block by EXECUTE; an error there is replaced by one that does not
quote the statement. With pg_stat_statements.track = all even that statement would be kept: `bootstrap` gives the
operator the right to switch that off for a transaction. Source: RFC 5802, RFC 7677; the format is that of
src/common/scram-common.c.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

from psycopg import sql

from flowstone.db.connection import Connection

ITERATIONS = 4096
"""Rounds of PBKDF2, the server's own default; passwords here are random, so more rounds buy nothing."""

SALT_BYTES = 16

_APPLY = """
DO $$
DECLARE
    account name := (SELECT role_name FROM pg_temp.flowstone_verifier);
    secret text := (SELECT verifier FROM pg_temp.flowstone_verifier);
    problem text;
BEGIN
    BEGIN
        PERFORM pg_catalog.set_config('pg_stat_statements.track', 'none', true);
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    BEGIN
        EXECUTE pg_catalog.format('ALTER ROLE %I LOGIN PASSWORD %L', account, secret);
    EXCEPTION WHEN OTHERS THEN
        problem := SQLSTATE;
    END;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = problem, MESSAGE = 'the password of a role could not be set';
    END IF;
END
$$
"""


def scram_verifier(password: str, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """The SCRAM-SHA-256 verifier Postgres would store for a password.

    Args:
        password: Printable ASCII, so that SASLprep would leave it as it is.
        salt: 16 random bytes; drawn when left out.
        iterations: Rounds of PBKDF2.

    Raises:
        ValueError: The password is empty or not printable ASCII.
    """
    if not password or not password.isascii() or not password.isprintable():
        raise ValueError("password: not printable ASCII or empty: use letters, digits and punctuation")
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_text(salt)}${_text(stored)}:{_text(server)}"


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def apply_verifier(connection: Connection, role_name: str, verifier: str) -> None:
    """Let a role log in with the password behind a verifier; neither of them is logged, whatever happens.

    Runs in the caller's transaction, or in one of its own on an autocommit connection.
    """
    with connection.transaction():
        connection.execute("CREATE TEMPORARY TABLE flowstone_verifier (role_name name, verifier text) ON COMMIT DROP")
        target = sql.SQL("COPY pg_temp.flowstone_verifier FROM STDIN")
        with connection.cursor() as cursor, cursor.copy(target) as copy:
            copy.write_row((role_name, verifier))
        connection.execute(_APPLY)
        connection.execute("DROP TABLE IF EXISTS pg_temp.flowstone_verifier")
