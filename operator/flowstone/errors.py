"""The errors of FlowStone, one small tree.

    FlowStoneError
    ├── PartitionError (ValueError)      a key, a range or a set of partitions was not acceptable
    │   ├── InvalidPartition             this text or value is no partition key
    │   ├── InvalidRange                 start, stop and step make no range
    │   ├── InvalidSet                   dimensions, values or exclusions do not fit together
    │   └── UnknownZone                  no such time zone
    ├── InvalidSpec                      a custom resource says something that cannot be done
    ├── AssetNotFound                    a Backfill names an Asset that is not there (yet)
    ├── TenantError
    │   ├── TenantRequired               no tenant is set, and this needs one
    │   ├── TenantRefused                a guard, or the tenant's own limits, said no
    │   ├── TenantUnknown                no tenant of that id is registered
    │   └── UnsafeLogin                  the login would see past row level security
    ├── ExportFailed                     a tenant's rows cannot be written to a file, or read back      retry
    ├── LedgerError
    │   ├── LedgerUnavailable            Postgres does not answer                       retry
    │   │   └── DatabaseUnavailable      a tenant's own database does not, the ledger does   retry
    │   ├── LedgerBusy                   rows are locked, or changed meanwhile          retry
    │   ├── LedgerRefused                a statement or a plan cannot be right
    │   └── SchemaNotCompatible          this code and the ledger's schema do not fit
    └── KubernetesError
        ├── KubernetesRefused            the API server answered no (403, 404, 409, 422, ...)
        └── KubernetesUnavailable        the API server does not answer                 retry

Adapters translate at the border: nothing above `db` sees an exception of a database driver, nothing above
`kube` one of an HTTP client. `error.retry` says whether the same request may succeed later although nobody
changed anything. A message names the field, the value and what to write instead.
"""

from __future__ import annotations

from typing import ClassVar


class FlowStoneError(Exception):
    """Anything FlowStone raises on purpose; never raised itself."""

    retry: ClassVar[bool] = False
    """Whether the same request may succeed later although nobody changed it."""


class PartitionError(FlowStoneError, ValueError):
    """A key, range or set of partitions was not acceptable; do not retry, change the input."""


class InvalidPartition(PartitionError):
    """Raised when a text or value is no partition key of the type asked for; do not retry."""


class InvalidRange(PartitionError):
    """Raised when a range is reversed, empty, off its grid or of an unknown step; do not retry."""


class InvalidSet(PartitionError):
    """Raised when a set's dimensions, values and exclusions do not fit together; do not retry."""


class UnknownZone(PartitionError):
    """Raised when a time zone is not in the IANA database that ships with FlowStone; do not retry."""


class InvalidSpec(FlowStoneError):
    """Raised when a custom resource asks for what cannot be done; retry only after the spec changed.

    Attributes:
        field: where it stands, such as `spec.partitions.day.from`.
        value: what stands there, as text.
        remedy: what to write instead, a sentence for people.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(f"{field}: {value!r}: {remedy}")


class AssetNotFound(FlowStoneError):
    """Raised when a Backfill names an Asset that is not there; retry when it appears."""


class TenantError(FlowStoneError):
    """Something about a tenant stood in the way; never raised itself."""


class TenantRequired(TenantError):
    """Raised when tenant work is asked for outside `with_tenant`; do not retry, enter one first."""


class TenantRefused(TenantError):
    """Raised when a guard, a tier or a namespace list says no; retry only after that changed."""


class TenantUnknown(TenantError):
    """Raised when no tenant of that id is registered; do not retry before it is."""


class UnsafeLogin(TenantError):
    """Raised when a login bypasses row level security; do not retry, use a plain login."""


class ExportFailed(FlowStoneError):
    """Raised when a tenant's export cannot be written or read; retry once the folder is as it should be."""

    retry = True


class LedgerError(FlowStoneError):
    """Something about the ledger in Postgres stood in the way; never raised itself."""


class LedgerUnavailable(LedgerError):
    """Raised when Postgres cannot be reached or broke off (the last commit is unknown); retry."""

    retry = True


class DatabaseUnavailable(LedgerUnavailable):
    """Raised when a tenant's own database cannot be reached; nobody but that tenant is concerned; retry."""


class LedgerBusy(LedgerError):
    """Raised when rows are locked by another session or changed since they were read; read again and retry."""

    retry = True


class LedgerRefused(LedgerError):
    """Raised when Postgres refused a statement, or a plan contradicts itself; do not retry, change the input."""


class SchemaNotCompatible(LedgerError):
    """Raised when the schema is older than this code or wants newer code; retry after `migrate`.

    Attributes:
        found: the ledger's revision; 0 when there is no ledger, or none this login may read.
        needed: the revision this code was written for.
        min_operator: the oldest code revision the ledger lets work on it.
    """

    def __init__(self, found: int, needed: int, min_operator: int = 0) -> None:
        self.found = found
        self.needed = needed
        self.min_operator = min_operator
        super().__init__(
            f"the ledger's schema is at revision {found} and wants code of {min_operator} or newer, "
            f"this code is of revision {needed}: run `flowstone migrate` of the newer of the two"
        )


class KubernetesError(FlowStoneError):
    """Something about the Kubernetes API stood in the way; never raised itself."""


class KubernetesRefused(KubernetesError):
    """Raised when the API server said no; do not retry: read again after a 409, change the request else.

    Attributes:
        status: the HTTP status: 403 RBAC or quota, 404 not there, 409 conflict or name taken, 422 invalid.
        reason: the server's word, such as `Forbidden`, `AlreadyExists`, `Conflict`, `Invalid`.
        message: the server's sentence.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = status
        self.reason = reason
        self.message = message
        super().__init__(f"Kubernetes refused: {status} {reason}: {message}")


class KubernetesUnavailable(KubernetesError):
    """Raised when the API server cannot be reached or answers 429 or 5xx; retry with back-off."""

    retry = True
