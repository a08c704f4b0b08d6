"""The login with which a namespace's Jobs report: role in Postgres and Secret in the namespace, kept in step.

The Secret is written before the role may log in, and its password is the truth: hand-outs compare it with the one that
was last set, each until it was found unchanged, then one every `KEPT` seconds. So two replicas that provision a
namespace at the same time agree on the Secret's. It is written by server-side apply because that request carries the
name: so the right to create Secrets is limited to this one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from flowstone.backfill.secret import SECRET_NAME, Endpoint, decoded, is_current, secret_manifest
from flowstone.db.logins import Logins
from flowstone.db.passwords import scram_verifier
from flowstone.kube.client import Json, Kube
from flowstone.kube.paths import core

KEPT = 5.0
"""Seconds for which a Secret that was found right is not looked at again; a backfill at work asks twice a second."""


class NamespaceLogin:
    """Provisions the logins of namespaces whose work has no tenant."""

    secret_name = SECRET_NAME

    def __init__(self, kube: Kube, logins: Logins, endpoint: Endpoint, new_password: Callable[[], str]) -> None:
        self._kube = kube
        self._logins = logins
        self._endpoint = endpoint
        self._new_password = new_password
        self._passwords: dict[str, str] = {}
        self._found: dict[str, float] = {}  # when each namespace's login was last found as it was before

    async def ensure(self, namespace: str, scope: str) -> None:
        """Make sure that the namespace's Secret lets its Jobs in."""
        if time.monotonic() - self._found.get(namespace, -KEPT) < KEPT:
            return
        login = await asyncio.to_thread(self._logins.ensure, scope, "ns")
        secret = await self._secret(namespace, login.role_name)
        password = decoded(secret)["PGPASSWORD"]
        if self._passwords.get(namespace) == password:
            self._found[namespace] = time.monotonic()
            return
        verifier = await asyncio.to_thread(scram_verifier, password)
        await asyncio.to_thread(self._logins.set_password, login.role_name, verifier)
        self._passwords[namespace] = password

    async def _secret(self, namespace: str, role: str) -> Json:
        path = core("secrets", namespace, SECRET_NAME)
        found = await self._kube.get(path) or {}
        if is_current(found, role, self._endpoint):
            return found
        password = decoded(found).get("PGPASSWORD") or self._new_password()
        return await self._kube.apply(path, secret_manifest(namespace, role, password, self._endpoint))
