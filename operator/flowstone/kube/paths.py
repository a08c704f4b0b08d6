"""Where things are in the Kubernetes API."""

from __future__ import annotations

GROUP = "flowstone.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

FIELD_MANAGER = "flowstone"
"""Owner of every field that the operator applies."""


def custom(plural: str, namespace: str | None = None, name: str | None = None) -> str:
    """Path of FlowStone's own resources: all, a namespace's, or one."""
    return _join(f"/apis/{GROUP}/{VERSION}", plural, namespace, name)


def jobs(namespace: str | None, name: str | None = None) -> str:
    """Path of Jobs: all, a namespace's, or one."""
    return _join("/apis/batch/v1", "jobs", namespace, name)


def core(plural: str, namespace: str | None, name: str | None = None) -> str:
    """Path of core resources such as pods, secrets, events and namespaces."""
    return _join("/api/v1", plural, namespace, name)


def events(namespace: str) -> str:
    """Path of a namespace's Events."""
    return _join("/apis/events.k8s.io/v1", "events", namespace, None)


def _join(base: str, plural: str, namespace: str | None, name: str | None) -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"{base}{where}/{plural}" + (f"/{name}" if name else "")
