"""`flowstone backfill ...`: run, watch and stop Backfills, and find out why one does not move."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from flowstone.cli import reading, steering
from flowstone.cli.cluster import Cluster
from flowstone.cli.following import follow
from flowstone.cli.manifests import Request, request
from flowstone.cli.options import Context, File, Form, Kubeconfig, Name, Namespace, Seconds, Wait
from flowstone.cli.output import Output, show, show_all
from flowstone.kube import paths

Json = dict[str, Any]


def status(
    name: Annotated[str | None, typer.Argument(help="Name of one Backfill.", show_default=False)] = None,
    namespace: Namespace = None,
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Those of all namespaces.")] = False,
    output: Form = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say where one Backfill stands, or all of them."""
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace)
    if name is not None:
        show(cluster.get(paths.custom("backfills", cluster.namespace, name)), output)
        return
    found = cluster.list(paths.custom("backfills", None if everywhere else cluster.namespace))
    show_all(found, output)


def watch(
    name: Name,
    namespace: Namespace = None,
    timeout: Seconds = None,
    output: Form = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Watch a Backfill until it is over; the exit code says how it ended."""
    follow(Cluster.connect(kubeconfig, context=context, namespace=namespace), name, timeout, output)


def run(
    file: File,
    namespace: Namespace = None,
    wait_for_it: Wait = False,
    timeout: Seconds = None,
    output: Form = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Apply a Backfill, and what stands beside it in the file, as `kubectl apply --server-side` does."""
    asked = request(file)
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace or asked.namespace)
    manifests = list(_placed(asked, cluster.namespace))
    for path, manifest in manifests:
        cluster.apply(path, manifest, dry_run=True)  # or a Backfill that is refused would leave its Asset changed
    applied = [cluster.apply(path, manifest) for path, manifest in manifests][-1]
    if wait_for_it:
        follow(cluster, asked.name, timeout, output)
    else:
        show(applied, output)


def _placed(asked: Request, namespace: str) -> Iterator[tuple[str, Json]]:
    """What is asked for, each with its path, in the order in which it is needed: the Backfill comes last."""
    for tenant in asked.tenants:
        yield paths.custom("tenants", None, tenant["metadata"]["name"]), tenant
    for plural, manifest in [*(("assets", asset) for asset in asked.assets), ("backfills", asked.backfill)]:
        metadata = {**manifest["metadata"], "namespace": namespace}
        yield paths.custom(plural, namespace, metadata["name"]), {**manifest, "metadata": metadata}


def commands() -> typer.Typer:
    """The group of commands."""
    group = typer.Typer(name="backfill", help="Run an asset over many partitions.", no_args_is_help=True)
    steer = (steering.pause, steering.resume, steering.retry, steering.cancel)
    for command in (run, reading.plan, status, watch, *steer, reading.explain, reading.logs):
        group.command()(command)
    return group
