"""`flowstone backfill ...`: run, watch and stop Backfills, and find out why one does not move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from flowstone.cli import reading
from flowstone.cli.cluster import Cluster
from flowstone.cli.exits import Exit
from flowstone.cli.manifests import request
from flowstone.cli.options import Context, File, Form, Kubeconfig, Name, Namespace, Seconds, Wait
from flowstone.cli.output import Output, console, show, show_all
from flowstone.cli.watching import picture, wait
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
    _follow(Cluster.connect(kubeconfig, context=context, namespace=namespace), name, timeout, output)


def run(
    file: File,
    namespace: Namespace = None,
    wait_for_it: Wait = False,
    timeout: Seconds = None,
    output: Form = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Apply a Backfill, and the Assets beside it in the file, as `kubectl apply --server-side` does."""
    asked = request(file)
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace or asked.namespace)
    for asset in asked.assets:
        _apply(cluster, "assets", asset)
    applied = _apply(cluster, "backfills", asked.backfill)
    if wait_for_it:
        _follow(cluster, asked.name, timeout, output)
    else:
        show(applied, output)


def _apply(cluster: Cluster, plural: str, manifest: Json) -> Json:
    metadata = {**manifest["metadata"], "namespace": cluster.namespace}
    path = paths.custom(plural, cluster.namespace, metadata["name"])
    return cluster.apply(path, {**manifest, "metadata": metadata})


def cancel(
    name: Name,
    namespace: Namespace = None,
    wait_for_it: Wait = False,
    timeout: Seconds = None,
    output: Form = Output.NAME,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Stop a Backfill for good: its Jobs are stopped and nothing more is handed out; what is done stays done."""
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace)
    changed = cluster.merge(paths.custom("backfills", cluster.namespace, name), {"spec": {"cancel": True}})
    if not wait_for_it:
        show(changed, output)
        return
    code = _wait(cluster, name, timeout, output)
    raise typer.Exit(Exit.OK if code is Exit.CANCELLED else code)


def _follow(cluster: Cluster, name: str, timeout: float | None, output: Output) -> None:
    raise typer.Exit(_wait(cluster, name, timeout, output))


def _wait(cluster: Cluster, name: str, timeout: float | None, output: Output) -> Exit:
    """Wait with a picture for people, and print how it ended in the form asked for."""
    collection = paths.custom("backfills", cluster.namespace)
    until = None if timeout is None else datetime.now(UTC) + timedelta(seconds=timeout)
    last: list[Json] = []

    def states() -> Any:
        for state in cluster.follow(collection, name, until=until):
            last[:] = [state]
            yield state

    with picture(console(stderr=output is not Output.TABLE)) as draw:
        code = wait(states(), draw, until=until, clock=lambda: datetime.now(UTC))
    show(last[0], output)
    return code


def commands() -> typer.Typer:
    """The group of commands."""
    group = typer.Typer(name="backfill", help="Run an asset over many partitions.", no_args_is_help=True)
    for command in (run, reading.plan, status, watch, cancel, reading.explain, reading.logs):
        group.command()(command)
    return group
