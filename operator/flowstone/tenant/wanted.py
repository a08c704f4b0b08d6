"""How the ledger's own tables and functions are protected, in the server's own words. Pure.

The migrations make it so; a test says when this and they differ. Predicates stand here as `pg_get_expr` shows them
under `search_path = pg_catalog`, with white space made single: they are compared as they are, because a comparison that
overlooks brackets or qualifiers overlooks holes.
"""

from __future__ import annotations

from dataclasses import dataclass

TENANT = "flowstone_tenant"
POOL = "flowstone_pool"
NAMESPACE = "flowstone_namespace"
OPERATOR = "flowstone_operator"
OWNER = "flowstone_owner"
SCOPES = f"{NAMESPACE},{TENANT}"


@dataclass(frozen=True, slots=True)
class WantedPolicy:
    """A policy as the catalogue shows it.

    Attributes:
        table: Name inside schema `flowstone`; empty for the policies of every table with tenants' rows.
        command: `*` all, `r` SELECT, `a` INSERT, `w` UPDATE, as in pg_policy.polcmd.
        roles: Names in alphabetical order, with commas.
    """

    table: str
    name: str
    roles: str
    using: str | None
    check: str | None
    command: str = "*"
    permissive: bool = True


def _all(table: str, name: str, roles: str, predicate: str, *, permissive: bool = True) -> WantedPolicy:
    return WantedPolicy(table, name, roles, predicate, predicate, permissive=permissive)


def _reads(table: str, name: str, roles: str, predicate: str) -> WantedPolicy:
    return WantedPolicy(table, name, roles, predicate, None, "r")


_LOGIN = "(tenant_id = ( SELECT s.tenant_id FROM flowstone.login_scope s WHERE (s.role_name = SESSION_USER)))"
_CONTEXT = "(tenant_id = ( SELECT flowstone.context_tenant() AS context_tenant))"
_SCOPE = "(scope = ( SELECT m.scope FROM flowstone.login_scope m WHERE (m.role_name = SESSION_USER)))"
_MINE = "(scope = ( SELECT flowstone.context_scope() AS context_scope))"
_ENDS = "(state = ANY (ARRAY['succeeded'::text, 'failed'::text]))"
_REPORTED = (
    f"({_MINE} AND (state = 'succeeded'::text) AND (fence = 0) AND (substr((backfill)::text, 15, 1) = '0'::text))"
)

TENANT_POLICIES: tuple[WantedPolicy, ...] = (
    _all("", "tenant_rows", TENANT, _LOGIN),
    _all("", "tenant_floor", TENANT, _LOGIN, permissive=False),
    _all("", "pool_rows", POOL, _CONTEXT),
    _all("", "pool_floor", POOL, _CONTEXT, permissive=False),
    _all("", "operator_rows", OPERATOR, "true"),
)
"""The policies of every table with tenants' rows, as `protection.policies` makes them."""

LEDGER = ("attempt", "backfill", "batch", "latest", "login_scope", "materialization", "tenant")
"""The ledger's tables under row level security."""

LEDGER_POLICIES: tuple[WantedPolicy, ...] = (
    *(_all(table, "operator_rows", OPERATOR, "true") for table in LEDGER),
    _reads("batch", "owner_reads", OWNER, "true"),
    _all("batch", "scope_floor", SCOPES, _SCOPE, permissive=False),
    _reads("batch", "scope_reads", SCOPES, _SCOPE),
    WantedPolicy(
        "batch",
        "scope_reports",
        SCOPES,
        f"({_SCOPE} AND (state = 'open'::text))",
        f"({_SCOPE} AND (state = 'open'::text) AND reporting)",
        "w",
    ),
    _all("latest", "owner_rows", OWNER, "true"),
    _all("latest", "pool_floor", POOL, _MINE, permissive=False),
    _reads("latest", "pool_rows", POOL, _MINE),
    _reads("login_scope", "own_login", SCOPES, "(role_name = SESSION_USER)"),
    _reads("login_scope", "owner_reads", OWNER, "true"),
    _all("materialization", "pool_floor", POOL, _MINE, permissive=False),
    WantedPolicy("materialization", "pool_reports", POOL, None, _REPORTED, "a"),
    _reads("materialization", "pool_rows", POOL, _MINE),
    _all("materialization", "scope_floor", SCOPES, _SCOPE, permissive=False),
    _reads("materialization", "scope_reads", SCOPES, _SCOPE),
    WantedPolicy(
        "materialization",
        "scope_reports",
        SCOPES,
        f"({_SCOPE} AND (state = 'running'::text))",
        f"({_SCOPE} AND {_ENDS})",
        "w",
    ),
    _reads("tenant", "owner_reads", OWNER, "true"),
)


@dataclass(frozen=True, slots=True)
class WantedGrant:
    """A right on the ledger's tables that scopes, tenants or pooled logins have.

    Attributes:
        columns: Those it is limited to; none means the whole table.
    """

    table: str
    role: str
    privilege: str
    columns: tuple[str, ...] = ()


_REPORTED_COLUMNS = ("scope", "asset", "partition", "backfill", "ordinal", "state", "fence", "finished_at")

LEDGER_GRANTS: tuple[WantedGrant, ...] = (
    *(
        grant
        for role in (NAMESPACE, TENANT)
        for grant in (
            WantedGrant("login_scope", role, "SELECT", ("role_name", "scope", "tenant_id")),
            WantedGrant("materialization", role, "SELECT"),
            WantedGrant("materialization", role, "UPDATE", ("state", "error", "finished_at")),
            WantedGrant("batch", role, "SELECT"),
            WantedGrant("batch", role, "UPDATE", ("reporting",)),
        )
    ),
    WantedGrant("login_scope", POOL, "SELECT", ("slot",)),
    WantedGrant("materialization", POOL, "SELECT"),
    WantedGrant("materialization", POOL, "INSERT", _REPORTED_COLUMNS),
    WantedGrant("latest", POOL, "SELECT"),
)


@dataclass(frozen=True, slots=True)
class WantedFunction:
    """A function of the ledger.

    Attributes:
        digest: SHA-256 of its body.
        definer: It runs with its owner's rights.
        roles: Who may call it besides the owner and the operator, in alphabetical order, with commas.
    """

    signature: str
    digest: str
    definer: bool
    roles: str = ""


FUNCTIONS: tuple[WantedFunction, ...] = (
    WantedFunction(
        "flowstone.context_scope()", "2a97bcf748e650f1819461b7215c22ced8259799bc1cdbe5c9bfbf7f6e53f4f6", True, POOL
    ),
    WantedFunction(
        "flowstone.context_signed()", "d95faefc8eed73252254d206819717e4bd7ac7a519a9377e6ca4febe8062c94d", True, POOL
    ),
    WantedFunction(
        "flowstone.context_tenant()", "900caf15cb288f811d33c5078fa86fb86c5604de323114528e2cb2232178cc76", False, POOL
    ),
    WantedFunction(
        "flowstone.enter_tenant(text)", "d62983c63ee6f919538668e909ad065ba08e3b6455b041bd991fa540c86097d5", False, POOL
    ),
    WantedFunction(
        "flowstone.record_latest()", "18ec8094150ae290422c9b2590c5e83bb2fb273fb589fa8cb28f6808e66288e5", True
    ),
    WantedFunction(
        "flowstone.restore_protection(regclass)",
        "9ef05eb8a5a7d06cb37dc00bea3f7fea8d94859fe7eba8db760769ccd9ff8ab3",
        True,
    ),
    WantedFunction(
        "flowstone.tenant_id()",
        "27652b946fd5530f4b60781a46d6d7f9043b4df6c67ac781d0fdea4e3f262ecd",
        True,
        f"{POOL},{TENANT}",
    ),
)
"""The functions of the ledger; a later migration that changes one changes its digest here."""
