"""The few objects that a new cluster gets: rights for DNS, and volumes to try databases on."""

import shutil
from typing import Any

from tests.cluster.api import Api
from tests.cluster.layout import NODE, Layout

STORAGE_CLASS = "local"

VOLUMES = 10
VOLUME_SIZE = "10Gi"
"""What the volumes claim to hold; they are plain folders, so nothing enforces it."""

RBAC = "/apis/rbac.authorization.k8s.io/v1"


def apply_objects(api: Api, layout: Layout) -> None:
    """Create what every cluster has."""
    api.apply(f"{RBAC}/clusterroles/flowstone-coredns", _dns_role())
    api.apply(f"{RBAC}/clusterrolebindings/flowstone-coredns", _dns_binding())
    api.apply(f"/apis/storage.k8s.io/v1/storageclasses/{STORAGE_CLASS}", _storage_class())
    for number in range(1, VOLUMES + 1):
        _create_volume(api, layout, f"local-{number}")


def _dns_role() -> dict[str, Any]:
    watch = ["list", "watch"]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": watch},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
        ],
    }


def _dns_binding() -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "flowstone-coredns"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "flowstone-coredns"}],
    }


def _storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def _create_volume(api: Api, layout: Layout, name: str) -> None:
    """Offer a folder as a volume, writable for any user because the kubelet sets no group on a hostPath."""
    folder = layout.volumes / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    api.apply(f"/api/v1/persistentvolumes/{name}", _volume(str(folder)))


def _volume(folder: str) -> dict[str, Any]:
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "spec": {
            "capacity": {"storage": VOLUME_SIZE},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": STORAGE_CLASS,
            "persistentVolumeReclaimPolicy": "Recycle",
            "hostPath": {"path": folder},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
