"""`flowstone context-key`: the key that contexts of pooled logins are signed with, as a file for this process's pod.

The chart's init container runs it. A key is made once and kept in a Secret, whoever comes first; it goes from there
into a file that only this user reads, and never into an argument, the environment or a log.
"""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from flowstone.cli.cluster import Cluster
from flowstone.cli.options import Context, Kubeconfig
from flowstone.errors import InvalidSpec, KubernetesRefused
from flowstone.kube import paths
from flowstone.tenant.signing import ContextKeys

ENTRY = "context.key"
"""The Secret's entry."""


def context_key(
    to: Annotated[Path, typer.Option(help="File to write, for this user alone.", show_default=False)],
    secret: Annotated[str, typer.Option(help="Secret that has the key; made when it is not there.")] = "",
    origin: Annotated[Path | None, typer.Option("--from", help="File that has the key, such as a mounted one.")] = None,
    namespace: Annotated[str, typer.Option(envvar="FLOWSTONE_POD_NAMESPACE", help="The Secret's namespace.")] = "",
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Write the key of signed contexts to a file; with --secret it is made once, and kept there."""
    if bool(secret) == (origin is not None):
        raise InvalidSpec("--secret, --from", secret or str(origin or ""), "name one of the two")
    if origin is not None:
        keys = ContextKeys.parsed(_text(origin), origin)
    else:
        cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace or None)
        keys = kept(cluster, cluster.namespace, secret)
    _write(keys, to)
    typer.echo(f"{len(keys.keys)} context key{'s' if len(keys.keys) > 1 else ''}")


def kept(cluster: Cluster, namespace: str, name: str) -> ContextKeys:
    """Return the keys in a Secret, which is made when it is not there; of several at once, the first one's counts.

    Raises:
        UnsafeLogin: The Secret holds something else.
        KubernetesRefused: A right is missing.
    """
    path = paths.core("secrets", namespace, name)
    try:
        found = cluster.get(path)
    except KubernetesRefused as refused:
        if refused.status != 404:
            raise
        found = _made(cluster, path, namespace, name)
    entry = (found.get("data") or {}).get(ENTRY, "")
    return ContextKeys.parsed(base64.b64decode(entry).decode("ascii", "replace"), Path(name, ENTRY))


def _made(cluster: Cluster, path: str, namespace: str, name: str) -> dict[str, Any]:
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": {ENTRY: base64.b64encode(ContextKeys.generate().text().encode()).decode()},
    }
    try:
        # Each asker is a manager of its own: whoever comes second owns nothing of it, and is refused.
        return cluster.apply(path, body, manager=f"flowstone-{secrets.token_hex(4)}")
    except KubernetesRefused as refused:
        if refused.status != 409:
            raise
        return cluster.get(path)


def _text(origin: Path) -> str:
    try:
        return origin.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec("--from", str(origin), f"the file cannot be read: {type(error).__name__}") from error


def _write(keys: ContextKeys, to: Path) -> None:
    """Replace the file at once, so that nobody reads half of it."""
    fresh = to.with_name(f"{to.name}.{secrets.token_hex(4)}")
    keys.write(fresh)
    os.replace(fresh, to)
