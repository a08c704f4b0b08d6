"""The signed context of a pooled connection: who may be seen, until when, and a signature over both.

`<scope>.<expiry>.<hmac>`: the scope `t/<cluster>/<tenant>`, the expiry as ten digits of Unix seconds, and HMAC-SHA256
over the two in hexadecimal. The database checks it (`flowstone.context_scope()`); whoever injects SQL into a pooled
session can set any text, but cannot sign one. Two keys are known while one is rotated: the first one signs.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowstone.errors import UnsafeLogin

KEY_FILE_VARIABLE = "FLOWSTONE_CONTEXT_KEY_FILE"
"""Environment variable that names the key file; without it, `keys=` must be given."""

CLUSTER_VARIABLE = "FLOWSTONE_CLUSTER_ID"
"""Environment variable with the cluster id of a program's scopes."""

LIFETIME_SECONDS = 300
"""How long a signed context is good for; a copy that leaked is worthless afterwards. Used ones are renewed."""

RENEW_SECONDS = 150
"""A context with less than this left is signed anew before the next statement."""

KEY_BYTES = 32
"""Length of a key; as long as the digest, as RFC 2104 advises."""

_BLOCK_BYTES = 64


@dataclass(frozen=True, slots=True)
class ContextKeys:
    """One key, or two while one is rotated; the first one signs.

    Attributes:
        keys: The secrets, 32 bytes each.
        cluster: Cluster id of the scopes.
    """

    keys: tuple[bytes, ...]
    cluster: str = "local"

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= 2 or any(len(key) != KEY_BYTES for key in self.keys):
            raise UnsafeLogin(f"the context key file must hold one or two keys of {KEY_BYTES} bytes: make it anew")

    def __repr__(self) -> str:
        return f"ContextKeys({len(self.keys)} keys, cluster={self.cluster!r})"

    @classmethod
    def generate(cls, cluster: str = "local") -> ContextKeys:
        """Make a new random key."""
        return cls((secrets.token_bytes(KEY_BYTES),), cluster)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], cluster: str = "local") -> ContextKeys:
        """Read keys, one a line in hexadecimal, the one that signs first.

        Raises:
            UnsafeLogin: The file is not there, others may read it, or it holds something else.
        """
        file = Path(path)
        try:
            mode, text = file.stat().st_mode, file.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise UnsafeLogin(f"{file}: the context key file cannot be read: {type(error).__name__}") from error
        if mode & (stat.S_IRWXO | stat.S_IWGRP):
            raise UnsafeLogin(f"{file}: others may use the context key: chmod 0600 (or 0440 for a mounted Secret)")
        return cls.parsed(text, file, cluster)

    @classmethod
    def parsed(cls, text: str, file: Path, cluster: str = "local") -> ContextKeys:
        """Return the keys that a file holds, wherever its content came from.

        Raises:
            UnsafeLogin: It holds something else.
        """
        return cls(tuple(_parsed(line, file) for line in text.split()), cluster)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ContextKeys:
        """Read the keys that the environment names.

        Raises:
            UnsafeLogin: It names none, or the file is not as it should be.
        """
        path = environment.get(KEY_FILE_VARIABLE)
        if not path:
            raise UnsafeLogin(f"no context key: set {KEY_FILE_VARIABLE} to the key file, or pass keys=")
        return cls.from_file(path, cluster_id(environment))

    def write(self, path: Path) -> None:
        """Write the file that `from_file` reads, for its owner only; never over an existing one."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self.text())

    def text(self) -> str:
        """Return what such a file holds."""
        return "".join(f"{key.hex()}\n" for key in self.keys)

    def scope(self, tenant_id: str) -> str:
        """Return the scope of a tenant of this cluster."""
        return f"t/{self.cluster}/{tenant_id}"

    def sign(self, tenant_id: str, expiry: int) -> str:
        """Return the context of a tenant until `expiry`, in Unix seconds."""
        payload = f"{self.scope(tenant_id)}.{expiry:010d}"
        return f"{payload}.{hmac.new(self.keys[0], payload.encode(), 'sha256').hexdigest()}"


def cluster_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return the cluster id of a program's scopes; "local" for one that belongs to no cluster."""
    return environment.get(CLUSTER_VARIABLE) or "local"


def pads(key: bytes) -> tuple[bytes, bytes]:
    """Return the inner and outer block of HMAC (RFC 2104), so that SQL needs `sha256()` and nothing else."""
    block = key.ljust(_BLOCK_BYTES, b"\0")
    return bytes(byte ^ 0x36 for byte in block), bytes(byte ^ 0x5C for byte in block)


def _parsed(line: str, file: Path) -> bytes:
    try:
        return bytes.fromhex(line)
    except ValueError as error:
        raise UnsafeLogin(f"{file}: the context key file must hold hexadecimal digits only: make it anew") from error
