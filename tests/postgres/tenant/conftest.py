"""Servers, databases and logins for the tests of tenants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest
import structlog

from flowstone.db.context_keys import install_context_keys
from flowstone.db.migrate import migrate
from flowstone.tenant.signing import ContextKeys
from tests.postgres.servers import Server, installed, local

POOL_PASSWORD = "pool-secret-0815"
OPERATOR_PASSWORD = "operator-secret-0816"

Connect = Callable[[], psycopg.Connection[tuple[object, ...]]]


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[int], Server]]:
    """Start a server of a major version when it is first asked for, migrated and with two tenants."""
    started: dict[int, Server] = {}
    with ExitStack() as stack:

        def get(major: int) -> Server:
            if major not in started:
                started[major] = stack.enter_context(local(major))
                migrate(
                    started[major].conninfo("postgres"), operator_password=OPERATOR_PASSWORD, log=structlog.get_logger()
                )
            return started[major]

        yield get


@pytest.fixture(scope="session")
def server(servers: Callable[[int], Server]) -> Server:
    """A migrated server of the oldest version there is."""
    return servers(min(installed()))


@pytest.fixture(scope="session")
def keys(server: Server) -> ContextKeys:
    """The keys that the server accepts; two tenants are registered, `tenant_a` and `tenant_b`."""
    keys = ContextKeys.generate()
    with server.connect() as admin:
        install_context_keys(admin, keys)
        admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{POOL_PASSWORD}' IN ROLE flowstone_pool")
        for tenant in ("tenant_a", "tenant_b"):
            admin.execute(
                "INSERT INTO flowstone.tenant (cluster, tenant_id, scope) VALUES ('local', %s, %s)",
                [tenant, keys.scope(tenant)],
            )
        admin.execute(TABLE)
    return keys


TABLE = """
CREATE TABLE public.note (tenant_id text NOT NULL DEFAULT flowstone.tenant_id(), id int, PRIMARY KEY (tenant_id, id));
ALTER TABLE public.note ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.note FORCE ROW LEVEL SECURITY;
CREATE POLICY pool_rows ON public.note TO flowstone_pool
    USING (tenant_id = (SELECT flowstone.context_tenant()))
    WITH CHECK (tenant_id = (SELECT flowstone.context_tenant()));
GRANT SELECT, INSERT, UPDATE, DELETE ON public.note TO flowstone_pool;
INSERT INTO public.note VALUES ('tenant_a', 1), ('tenant_b', 1), ('tenant_b', 2);
"""
"""One row is tenant_a's, two are tenant_b's."""


@pytest.fixture
def connection(server: Server, keys: ContextKeys) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A plain connection of a pooled login, not in autocommit."""
    with psycopg.connect(server.conninfo("postgres", "app", POOL_PASSWORD)) as connection:
        yield connection
        if not connection.closed:
            connection.rollback()
