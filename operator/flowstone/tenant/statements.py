"""Steps on a tenant's roles and schema as SQL. Pure.

Names come from the catalogue or from this operator's random numbers, never from a resource; they are checked and
quoted all the same. Postgres cuts a name at 63 bytes with a mere notice, and would act on another role.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

from flowstone.errors import LedgerRefused
from flowstone.tenant.observed import Slot
from flowstone.tenant.steps import Change, Configure, Expel, Join, Leave, Lock, MakeSchema, Strip

KINDS: Mapping[str, str] = {"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS", "T": "TYPES"}
"""What one of a tenant's logins makes and the other may use, by pg_default_acl.defaclobjtype."""

_UNDO = {
    "SUPERUSER": "NOSUPERUSER",
    "CREATEROLE": "NOCREATEROLE",
    "CREATEDB": "NOCREATEDB",
    "REPLICATION": "NOREPLICATION",
    "BYPASSRLS": "NOBYPASSRLS",
    "NOINHERIT": "INHERIT",
    "VALID UNTIL": "VALID UNTIL 'infinity'",
}
"""What takes an attribute away again."""


def statements(change: Change, names: Mapping[Slot, str], schema: str | None) -> list[str]:
    """Return the statements of a step, or none when it is not a matter of roles.

    Args:
        change: The step.
        names: The tenant's role names, by slot.
        schema: Name of the tenant's own schema, if it has one.
    """
    match change:
        case Strip(slot, attributes):
            return [f"ALTER ROLE {identifier(names[slot])} {_UNDO[one]}" for one in attributes]
        case Join(slot, group):
            return [f"GRANT {identifier(group)} TO {identifier(names[slot])}"]
        case Leave(slot, group):
            return [f"REVOKE {identifier(group)} FROM {identifier(names[slot])}"]
        case Expel(slot, member):
            return [f"REVOKE {identifier(names[slot])} FROM {identifier(member)}"]
        case Lock(slot):
            return [f"ALTER ROLE {identifier(names[slot])} NOLOGIN PASSWORD NULL"]
        case Configure():
            return _configure(names[change.slot], change)
        case MakeSchema(slots) if schema is not None:
            return _make_schema(identifier(schema), [identifier(names[slot]) for slot in slots])
        case _:
            return []


def _configure(role_name: str, change: Configure) -> list[str]:
    role = identifier(role_name)
    resets = [
        f"ALTER ROLE {role} RESET ALL",
        *(f"ALTER ROLE {role} IN DATABASE {identifier(name)} RESET ALL" for name in change.databases),
    ]
    limit = f"ALTER ROLE {role} CONNECTION LIMIT {int(change.connections)}"
    return [limit, *resets, *assigned(role_name, change.settings)]


def assigned(role_name: str, settings: Sequence[str]) -> list[str]:
    """Return what gives a role its settings, each as `name=value`.

    Not as the role itself: what the server looks up to let the operator do this, it needs for the password too.
    """
    role = identifier(role_name)
    pairs = (one.split("=", 1) for one in settings)
    return [f"ALTER ROLE {role} SET {identifier(name)} = {_value(name, value)}" for name, value in pairs]


def _value(name: str, value: str) -> str:
    """A search path is a list of names, everything else a text."""
    if name == "search_path":
        return ", ".join(identifier(part.strip()) for part in value.split(","))
    return literal(value)


def _make_schema(schema: str, logins: Sequence[str]) -> list[str]:
    """The operator owns the schema: an owner could grant it to everybody. Each login may use what the other makes."""
    made = [f"CREATE SCHEMA IF NOT EXISTS {schema}", f"REVOKE ALL ON SCHEMA {schema} FROM PUBLIC"]
    made += [f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {login}" for login in logins]
    return [*made, *shared(schema, logins)]


def shared(schema: str, logins: Sequence[str]) -> Iterator[str]:
    """Let each login use what the other one makes in a schema; all names are quoted, and it is one transaction."""
    for maker, user in permutations(logins, 2):
        yield f"SET LOCAL ROLE {maker}"
        for kind in KINDS.values():
            yield f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT ALL ON {kind} TO {user}"
        yield "RESET ROLE"


def identifier(name: str) -> str:
    """Quote a name.

    Raises:
        LedgerRefused: Postgres would cut it, or psycopg would.
    """
    if not name or "\0" in name or len(name.encode()) > 63:
        raise LedgerRefused("a name of 1 to 63 bytes without NUL is needed here")
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text.

    Raises:
        LedgerRefused: It has a NUL, or a backslash, which no setting of ours has.
    """
    if "\0" in text or "\\" in text:
        raise LedgerRefused("a text without NUL and backslash is needed here")
    return "'" + text.replace("'", "''") + "'"
