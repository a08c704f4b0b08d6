"""`flowstone backfill plan|explain|logs`: look before, during and after, without changing anything."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from flowstone.cli import explaining, planning, podlog
from flowstone.cli.cluster import Cluster
from flowstone.cli.manifests import Request, assets_of, request
from flowstone.cli.options import Context, File, Kubeconfig, Name, Namespace
from flowstone.cli.output import Output, console
from flowstone.cli.wanted import Ahead, ahead, stranger
from flowstone.errors import InvalidSpec, KubernetesRefused
from flowstone.executor.jobs import LABEL_UID
from flowstone.kube import paths

Json = dict[str, Any]


def plan(
    file: File,
    asset_file: Annotated[Path | None, typer.Option("--asset", help="File with the Asset.")] = None,
    namespace: Namespace = None,
    output: Annotated[Output, typer.Option("-o", "--output", help="Form of the answer.")] = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show what a Backfill would run, and refuse what it may not. The Asset comes from a file, or from the cluster."""
    asked = request(file)
    asset = _asset_in_files(asked, asset_file)
    if asset is None:
        cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace or asked.namespace)
        asset = cluster.get(paths.custom("assets", cluster.namespace, asked.asset))
    tenants = _tenants(asked, kubeconfig, context) if planning.needs_tenants(asset) else []
    found = planning.outlook(asked.backfill, asset, tenants)
    if output is Output.JSON:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    elif output is Output.YAML:
        typer.echo(yaml.safe_dump(found.to_dict(), sort_keys=False, allow_unicode=True), nl=False)
    else:
        console().print(planning.picture(found))


def _tenants(asked: Request, kubeconfig: str | None, context: str | None) -> list[Json]:
    """The Tenants of the file, or those of the cluster where it has none."""
    if asked.tenants:
        return asked.tenants
    return Cluster.connect(kubeconfig, context=context, namespace=None).list(paths.custom("tenants"))


def _asset_in_files(asked: Request, asset_file: Path | None) -> Json | None:
    known = [*asked.assets, *(assets_of(asset_file) if asset_file else [])]
    found = next((one for one in known if one["metadata"].get("name") == asked.asset), None)
    if found is None and asset_file is not None:
        raise InvalidSpec("--asset", str(asset_file), f"it has no Asset {asked.asset!r}, which the Backfill names")
    return found


def explain(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Say what holds a Backfill up, and what to do."""
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace)
    resource = cluster.get(paths.custom("backfills", cluster.namespace, name))
    mine = f"{LABEL_UID}={resource['metadata']['uid']}"
    jobs = cluster.list(paths.jobs(cluster.namespace), labels=mine)
    pods = cluster.list(paths.core("pods", cluster.namespace), labels=mine)
    events = cluster.list(paths.core("events", cluster.namespace))
    now = datetime.now(UTC)
    found = explaining.findings(resource, jobs, pods, events, now, _first(cluster, resource))
    console().print(explaining.picture(resource, found, now))


def _first(cluster: Cluster, resource: Json) -> list[Ahead]:
    """Other Backfills that have partitions of this one first, as far as one may see."""
    known = _asset(cluster, resource)
    if known is None:
        return []
    return ahead(resource, cluster.list(paths.custom("backfills", cluster.namespace)), *known)


def _asset(cluster: Cluster, resource: Json) -> tuple[Json, list[Json]] | None:
    """The Asset of a Backfill, and the Tenants that are its values; None where it is gone, or one may not see them."""
    try:
        asset = cluster.get(paths.custom("assets", cluster.namespace, resource["spec"]["asset"]))
        return asset, cluster.list(paths.custom("tenants")) if planning.needs_tenants(asset) else []
    except KubernetesRefused:
        return None


def logs(
    name: Name,
    partition: Annotated[str, typer.Argument(help="Serialized key, such as 2013-02-09.", show_default=False)],
    namespace: Namespace = None,
    tail: Annotated[int, typer.Option(min=1, help="Lines, at most.")] = 200,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of the Job that works, or last failed, on a partition."""
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace)
    resource = cluster.get(paths.custom("backfills", cluster.namespace, name))
    mine = f"{LABEL_UID}={resource['metadata']['uid']}"
    job = podlog.job_of(resource, partition, cluster.list(paths.jobs(cluster.namespace), labels=mine))
    if job is None:
        raise InvalidSpec("PARTITION", partition, _jobless(cluster, resource, partition))
    pod = _pod_of(cluster, job, partition, f"`flowstone backfill explain {name} -n {cluster.namespace}`")
    path = paths.core("pods", cluster.namespace, pod["metadata"]["name"])
    text = cluster.text(f"{path}/log", container=podlog.container_of(pod), tailLines=str(tail))
    typer.echo(text, nl=False)
    if not text:
        console(stderr=True).print(Text(f"note: {podlog.silence(pod)}"), soft_wrap=True)


def _pod_of(cluster: Cluster, job: Json, partition: str, explanation: str) -> Json:
    """The pod of a Job.

    Raises:
        InvalidSpec: It has no log, or there is no such pod (any more); says why.
    """
    name = job["metadata"]["name"]
    pods = cluster.list(paths.core("pods", cluster.namespace), labels=f"batch.kubernetes.io/job-name={name}")
    now = datetime.now(UTC)
    if podlog.unstarted(job, pods, [], now):
        why = podlog.unstarted(job, pods, cluster.list(paths.core("events", cluster.namespace)), now)
        raise InvalidSpec("PARTITION", partition, f"Job {name} has no log: {why}; {explanation} says what to do")
    if not pods:
        raise InvalidSpec("PARTITION", partition, f"the pod of Job {name} is gone, and its log with it")
    return pods[-1]


def _jobless(cluster: Cluster, resource: Json, partition: str) -> str:
    """Why no Job has a partition."""
    known = _asset(cluster, resource)
    return (stranger(resource, partition, *known) if known else "") or podlog.jobless(resource, partition)
