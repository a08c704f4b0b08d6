"""`flowstone backfill pause|resume|retry|cancel`: edits of the live fields of a spec, one word each.

In GitOps the file in Git is the place for such edits; these commands are for the moment.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from flowstone.cli.cluster import Cluster
from flowstone.cli.exits import Exit, condition
from flowstone.cli.following import follow, watched
from flowstone.cli.options import Context, Form, Kubeconfig, Name, Namespace, Seconds, Wait
from flowstone.cli.output import Output, show
from flowstone.kube import paths

Json = dict[str, Any]


def pause(
    name: Name,
    namespace: Namespace = None,
    kill: Annotated[bool, typer.Option("--kill", help="Stop open Jobs too, instead of letting them end.")] = False,
    output: Form = Output.NAME,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Hand out nothing more until `resume`; stopped Jobs use up no attempt."""
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace)
    show(_edit(cluster, name, {"suspend": "Kill" if kill else "Drain"}), output)


def resume(
    name: Name,
    namespace: Namespace = None,
    output: Form = Output.NAME,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Go on after `pause`, or after more partitions failed than failureBudget allows (which forgives them)."""
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace)
    current = cluster.get(paths.custom("backfills", cluster.namespace, name))
    show(_edit(cluster, name, resumption(current, datetime.now(UTC))), output)


def resumption(resource: Json, now: datetime) -> Json:
    """What to change in the spec so that a Backfill goes on; a budget is forgiven only when it is what stopped it."""
    over_budget = condition(resource, "Suspended") == "True" and condition(resource, "Stalled") == "True"
    return {"suspend": None} | ({"resume": token(now)} if over_budget else {})


def retry(
    name: Name,
    namespace: Namespace = None,
    wait_for_it: Wait = False,
    timeout: Seconds = None,
    output: Form = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Try the partitions that failed for good again, with new attempts."""
    cluster = Cluster.connect(kubeconfig, context=context, namespace=namespace)
    changed = _edit(cluster, name, {"retryFailed": token(datetime.now(UTC))})
    if wait_for_it:
        follow(cluster, name, timeout, output)
    else:
        show(changed, output)


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
    changed = _edit(cluster, name, {"cancel": True})
    if not wait_for_it:
        show(changed, output)
        return
    code = watched(cluster, name, timeout, output)
    raise typer.Exit(Exit.OK if code is Exit.CANCELLED else code)


def token(now: datetime) -> str:
    """A value that `resume` or `retryFailed` had never before, and that says when it was set."""
    return f"cli-{now.astimezone(UTC).strftime('%Y%m%dT%H%M%S.%f')}"


def _edit(cluster: Cluster, name: str, change: Json) -> Json:
    return cluster.merge(paths.custom("backfills", cluster.namespace, name), {"spec": change})
