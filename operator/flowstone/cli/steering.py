"""`flowstone backfill pause|resume|retry|cancel`: edits of the live fields of a spec, one word each.

In GitOps the file in Git is the place for such edits; these commands are for the moment.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from flowstone.cli.cluster import Cluster
from flowstone.cli.exits import Exit, condition, is_over
from flowstone.cli.following import follow, watched
from flowstone.cli.options import Context, Form, Kubeconfig, Name, Namespace, Seconds, Wait
from flowstone.cli.output import Output, console, show
from flowstone.errors import InvalidSpec
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
    _look(cluster, name, "pause")
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
    current = _look(cluster, name, "resume")
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
    _look(cluster, name, "retry")
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
    _look(cluster, name, "cancel")
    changed = _edit(cluster, name, {"cancel": True})
    if not wait_for_it:
        show(changed, output)
        return
    code = watched(cluster, name, timeout, output)
    raise typer.Exit(Exit.OK if code is Exit.CANCELLED else code)


Verb = Literal["pause", "resume", "retry", "cancel"]


def futile(resource: Json, verb: Verb) -> str:
    """Why a command would change nothing about a Backfill, and what would; "" when it may change something."""
    failed = ((resource.get("status") or {}).get("counts") or {}).get("failed", 0)
    if (resource.get("spec") or {}).get("cancel"):
        words = "it was cancelled, which cannot be taken back: another Backfill runs what is missing"
        return "" if verb == "cancel" else words + ", and with select: Failed what failed"
    if not is_over(resource) or (verb == "retry" and failed):
        return ""
    return (
        f"it is over ({resource['status'].get('phase')}), so there is nothing to {verb}: {_instead(resource, failed)}"
    )


def _instead(resource: Json, failed: int) -> str:
    meta = resource["metadata"]
    if failed:
        return f"`flowstone backfill retry {meta['name']} -n {meta['namespace']}` tries what failed again ({failed})"
    return "another Backfill runs what is missing, and with select: All everything anew"


def remark(resource: Json, verb: Verb) -> str:
    """What is worth knowing about a command that was taken; "" for nothing."""
    spec, status = resource.get("spec") or {}, resource.get("status") or {}
    if verb == "cancel" and spec.get("cancel"):
        return "it was cancelled before"
    if verb == "resume" and not spec.get("suspend") and condition(resource, "Suspended") != "True":
        return "it was not suspended"
    if verb == "retry" and not (status.get("counts") or {}).get("failed"):
        return "no partition had failed for good so far"
    return ""


def _look(cluster: Cluster, name: str, verb: Verb) -> Json:
    """The Backfill before it is edited.

    Raises:
        InvalidSpec: The edit would change nothing.
    """
    current = cluster.get(paths.custom("backfills", cluster.namespace, name))
    if why := futile(current, verb):
        raise InvalidSpec("NAME", name, why)
    if words := remark(current, verb):
        console(stderr=True).print(f"note: {words}", soft_wrap=True)
    return current


def token(now: datetime) -> str:
    """A value that `resume` or `retryFailed` had never before, and that says when it was set."""
    return f"cli-{now.astimezone(UTC).strftime('%Y%m%dT%H%M%S.%f')}"


def _edit(cluster: Cluster, name: str, change: Json) -> Json:
    return cluster.merge(paths.custom("backfills", cluster.namespace, name), {"spec": change})
