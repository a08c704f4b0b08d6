"""What an installation can set, read once from the environment (prefix `FLOWSTONE_`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Names = Annotated[tuple[str, ...], NoDecode]
"""A list of names; in the environment they are separated by commas."""


class OperatorSettings(BaseSettings):
    """The operator's settings; the chart's values of the same names set them."""

    model_config = SettingsConfigDict(env_prefix="FLOWSTONE_", frozen=True)

    database_url: str = ""
    """Connection to the ledger in libpq form; empty means libpq's own `PG*` variables."""

    cluster_id: str = ""
    """This cluster in every scope; empty means the uid of namespace kube-system. Never change it later."""

    max_parallel: int = Field(default=200, ge=1)
    """Open batches of all backfills of this operator together; lowering it drains."""

    resync_seconds: float = Field(default=60, gt=0)
    """Seconds until a resource is looked at although no event came; a lost event costs this much."""

    node_lost_seconds: float = Field(default=300, ge=0)
    """Seconds until the pod of a dead node is deleted by force and its slot is free again."""

    service_accounts: Names = ("default",)
    """Service accounts that a pod template may name."""

    watch_namespaces: Names = ()
    """Namespaces to serve; empty means all."""

    tenants: bool = True
    """Whether Tenants are provisioned; it takes the right to read and write Secrets in their namespaces."""

    context_key_file: Path | None = None
    """File with the key that the proof of isolation signs contexts with; without it some attacks are left out."""

    tenant_retention_days: int = Field(default=7, ge=0, le=3_650)
    """Days that a tenant's rows are kept after its confirmed deletion; then they are gone for good."""

    tenant_export_folder: Path | None = None
    """Folder that the rows of such a tenant are written to, as a file that can be restored; unset means no file."""

    history_days: int = Field(default=90, ge=1)
    """Days that the rows of finished backfills are kept; what is materialized is remembered for ever."""

    health_port: int = Field(default=8080, ge=0, le=65535)
    """Port of /healthz, /readyz and /metrics; 0 lets the system choose."""

    workers: int = Field(default=8, ge=1, le=64)
    """Resources that are reconciled at the same time; each holds at most one connection to the ledger."""

    lease_seconds: float = Field(default=15, ge=2)
    """Seconds for which a replica keeps a backfill to itself.

    One that was killed is waited for until Postgres has seen its connections end, mostly at once; one that is cut off
    from Postgres or lost with its node is waited for this long.
    """

    pod_name: str = "flowstone"
    """This replica's name: the owner of its leases and the instance that its Events name."""

    pod_namespace: str = "default"
    """Namespace of this replica."""

    worker_pghost: str = ""
    """Host under which pods reach the ledger; empty means the operator's own."""

    worker_pgport: str = ""
    """Port under which pods reach the ledger; empty means the operator's own."""

    worker_pgdatabase: str = ""
    """Database that pods use; empty means the operator's own."""

    worker_pgsslmode: str = ""
    """`sslmode` of the pods' connections; empty leaves libpq's default."""

    @field_validator("service_accounts", "watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value
