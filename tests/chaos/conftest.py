"""The same cluster, operator and namespaces as the end-to-end tests."""

from tests.e2e.conftest import cluster, image, namespace, operator, psql

__all__ = ["cluster", "image", "namespace", "operator", "psql"]
