"""The whole adversarial suite, its version and its digest. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from flowstone.tenant.attack import Attack
from flowstone.tenant.attacks_modes import OWN_DATABASE, SCHEMA
from flowstone.tenant.attacks_pool import POOL
from flowstone.tenant.attacks_routes import FUNCTION_CALLS, OBJECTS, ROLES, SETTINGS
from flowstone.tenant.attacks_rows import CONTROLS, ORACLES, READS, WRITES
from flowstone.tenant.lint_databases import DATABASE_CHECKS
from flowstone.tenant.lint_rights import RIGHT_CHECKS
from flowstone.tenant.lint_tables import TABLE_CHECKS
from flowstone.tenant.linter import Check

VERSION = 4
"""Goes up when attacks or checks are added or changed."""

ATTACKS: tuple[Attack, ...] = (
    *CONTROLS,
    *READS,
    *ORACLES,
    *WRITES,
    *ROLES,
    *SETTINGS,
    *OBJECTS,
    *FUNCTION_CALLS,
    *POOL,
)

MODE_ATTACKS: tuple[Attack, ...] = (*SCHEMA, *OWN_DATABASE)
"""Those of isolation Schema and Database, run while a tenant has it."""

CHECKS: tuple[Check, ...] = (*TABLE_CHECKS, *RIGHT_CHECKS, *DATABASE_CHECKS)
"""All checks, in the order in which they are reported."""


def digest() -> str:
    """Return SHA-256 over all attacks and checks as they are written: what was proven can be looked up."""
    written = {
        "version": VERSION,
        "attacks": [asdict(attack) for attack in (*ATTACKS, *MODE_ATTACKS)],
        "checks": [(check.name, check.sql) for check in CHECKS],
    }
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()
