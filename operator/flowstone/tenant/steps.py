"""What can be done to a tenant: the words in which `changes` decides and the executor acts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flowstone.tenant.observed import Slot


@dataclass(frozen=True, slots=True)
class Register:
    """Make the registry's row."""


@dataclass(frozen=True, slots=True)
class Record:
    """Write columns of the registry's row."""

    values: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class MakeLogin:
    """Make a login that cannot log in yet, its mapping and its membership; limit and settings as in `Configure`."""

    slot: Slot
    connections: int
    settings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Remap:
    """Lead a login to this tenant's rows again."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Unmap:
    """Take a stranger's way to this tenant's rows."""

    role_name: str


@dataclass(frozen=True, slots=True)
class Strip:
    """Take away attributes that a login must not have."""

    slot: Slot
    attributes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Join:
    """Make a login a member of its group."""

    slot: Slot
    group: str


@dataclass(frozen=True, slots=True)
class Leave:
    """End a login's membership."""

    slot: Slot
    group: str


@dataclass(frozen=True, slots=True)
class Expel:
    """End somebody's membership in a login."""

    slot: Slot
    member: str


@dataclass(frozen=True, slots=True)
class Configure:
    """Give a login its limit of sessions and its settings, and no others.

    Attributes:
        settings: As `name=value`, for all databases.
        databases: Where it has settings of their own, that are to go.
    """

    slot: Slot
    connections: int
    settings: tuple[str, ...]
    databases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MakeSchema:
    """Make the tenant's own schema, or restore its grants, for the logins there are."""

    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class MakeDatabase:
    """Make the tenant's own database, from wherever an earlier try broke off, for the logins there are."""

    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class RestoreDatabase:
    """Put right what is not as it should be about the tenant's own database, for the logins there are."""

    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Issue:
    """Make a new password for a login, put it into every Secret, and let the login be the active one.

    Attributes:
        standby: Nobody uses the login, so it is let in first and tried, and the Secrets follow.
    """

    slot: Slot
    standby: bool


@dataclass(frozen=True, slots=True)
class Restore:
    """Let a login in again with the password that the Secrets hold."""

    slot: Slot
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class WriteSecrets:
    """Put these credentials into the Secrets of these namespaces."""

    slot: Slot
    password: str = field(repr=False)
    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteSecrets:
    """Delete the Secrets of these namespaces."""

    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lock:
    """Take the right to log in."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class EndSessions:
    """End all sessions of a login."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class EndStatements:
    """End sessions whose statement runs longer than the tenant may."""

    slot: Slot
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Export:
    """Digest all of the tenant's rows, as evidence of what was deleted; record it, and until when they are kept."""

    retain_until: datetime


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete the tenant's rows, schema or database, and logins; its name stays taken for ever."""


REPAIRS = (Remap, Unmap, Strip, Join, Leave, Expel, Configure, RestoreDatabase)
"""Steps that put right what somebody did by hand; one of them that the server refuses holds up no other step."""

Change = (
    Register
    | Record
    | MakeLogin
    | Remap
    | Unmap
    | Strip
    | Join
    | Leave
    | Expel
    | Configure
    | MakeSchema
    | MakeDatabase
    | RestoreDatabase
    | Issue
    | Restore
    | WriteSecrets
    | DeleteSecrets
    | Lock
    | EndSessions
    | EndStatements
    | Export
    | Purge
)
