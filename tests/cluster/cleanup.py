"""Ends a cluster, also one whose starter or whose components were killed, and says what is left.

The order matters: the managers first, so that nothing is started again; then the containers; then mounts, network
and files, which a living process would hold or make anew.
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.configuration import CNI_NETWORK
from tests.cluster.errors import CommandError
from tests.cluster.layout import DOCKER_CGROUP, Layout
from tests.cluster.network import interfaces, remove_network, tables
from tests.cluster.processes import kill_all, owned_processes
from tests.cluster.shell import run

CGROUPS = Path("/sys/fs/cgroup")

CNI_RESULTS = Path("/var/lib/cni/results")
"""Where the runtime notes what the network plugins answered; the folder cannot be configured."""

CONTAINER_LOG_LINKS = Path("/var/log/containers")
"""Where the kubelet puts links to container logs; the folder cannot be configured."""

DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
"""The kubelet's fixed folder for device plugins."""


@dataclass(frozen=True)
class Leftovers:
    """What a cluster has on this machine; all empty means that there is none."""

    processes: tuple[int, ...]
    mounts: tuple[str, ...]
    interfaces: tuple[str, ...]
    tables: tuple[str, ...]
    files: tuple[str, ...]

    def lines(self) -> list[str]:
        """One line per kind that is there."""
        kinds = {
            "processes": [str(pid) for pid in self.processes],
            "mounts": self.mounts,
            "network interfaces": self.interfaces,
            "nftables tables": self.tables,
            "files": self.files,
        }
        return [f"{kind}: {' '.join(names)}" for kind, names in kinds.items() if names]


def leftovers(layout: Layout) -> Leftovers:
    """Look for everything that a cluster puts on a machine outside the user's cache."""
    containers = container_ids(layout)
    return Leftovers(
        processes=tuple(owned_processes(containers)),
        mounts=tuple(mounts_below(Path("/proc/self/mountinfo").read_text(), _mount_roots(layout))),
        interfaces=tuple(interfaces()) if shutil.which("ip") else (),
        tables=tuple(table for _, table in tables()) if shutil.which("nft") else (),
        files=tuple(str(path) for path in _files(layout, containers)),
    )


def remove(layout: Layout) -> int:
    """End whatever cluster is on this machine, remove its traces, and return how many processes were ended."""
    containers = container_ids(layout)
    ended = kill_all(lambda: owned_processes(containers))
    containers |= container_ids(layout)
    _unmount(layout)
    if shutil.which("ip") and shutil.which("nft"):
        remove_network()
    for path in _files(layout, containers):
        _remove_path(path)
    for path in (layout.pids, layout.secrets, layout.settings):
        shutil.rmtree(path, ignore_errors=True)
    layout.kubeconfig.unlink(missing_ok=True)
    layout.environment.unlink(missing_ok=True)
    return ended


def forget_containers(layout: Layout, kube: Path) -> None:
    """Drop the ended containers from the node's store, whose images are kept."""
    database = layout.containerd_store / "io.containerd.metadata.v1.bolt" / "meta.db"
    for name in ("io.containerd.grpc.v1.cri", "io.containerd.runtime.v2.task"):
        shutil.rmtree(layout.containerd_store / name, ignore_errors=True)
    if not database.exists():
        return
    try:
        run([kube, "forget-containers", database])
    except CommandError:
        # A database that cannot be opened would keep containerd from starting; the images can be loaded again.
        shutil.rmtree(layout.containerd_store, ignore_errors=True)


def container_ids(layout: Layout) -> frozenset[str]:
    """Ids of the containers that our containerd runs, by the folders that it keeps for them."""
    return frozenset(folder.name for folder in _bundles(layout))


def mounts_below(mountinfo: str, roots: Sequence[Path]) -> list[str]:
    """Mount points at or below the given folders, the innermost first (proc(5): mountinfo's fifth field)."""
    points = [line.split()[4].encode().decode("unicode_escape") for line in mountinfo.splitlines()]
    inside = [point for point in points if any(Path(point).is_relative_to(root) for root in roots)]
    return sorted(inside, key=len, reverse=True)


def _bundles(layout: Layout) -> list[Path]:
    tasks = layout.sockets / "containerd" / "io.containerd.runtime.v2.task"
    return list(tasks.glob("*/*"))


def _mount_roots(layout: Layout) -> tuple[Path, ...]:
    # The cache too: image stores mount there, and so does a debootstrap that was killed.
    return (layout.state, layout.sockets, layout.cache)


def _unmount(layout: Layout) -> None:
    points = mounts_below(Path("/proc/self/mountinfo").read_text(), _mount_roots(layout))
    for point in points:
        # Lazily: a mount that somebody looks at disappears all the same once they stop.
        run(["umount", "--lazy", point])


def _files(layout: Layout, containers: Iterable[str]) -> list[Path]:
    """Files and folders outside the cache that exist, deepest first where one contains another."""
    names = [*containers]
    found = [path for container in _bundles(layout) for path in _shim_socket(container)]
    found += [
        path for pattern in (f"{CNI_NETWORK}-*", *(f"*{name}*" for name in names)) for path in CNI_RESULTS.glob(pattern)
    ]
    found += [link for link in CONTAINER_LOG_LINKS.glob("*.log") if _points_into(link, layout.pod_logs)]
    found += _cgroups(names)
    found += [path for path in (layout.state, layout.sockets) if path.exists()]
    return list(dict.fromkeys(found))


def _shim_socket(bundle: Path) -> list[Path]:
    """A shim's socket lies in a folder of containerd's that all installations share; the bundle names it."""
    address = bundle / "address"
    if not address.is_file():
        return []
    path = Path(address.read_text().strip().removeprefix("unix://"))
    return [path] if path.exists() else []


def _points_into(link: Path, folder: Path) -> bool:
    return link.is_symlink() and link.readlink().is_relative_to(folder)


def _cgroups(containers: Sequence[str]) -> list[Path]:
    """Cgroups of our containers, with version 1 one in each controller's tree."""
    groups = [path for name in containers for path in CGROUPS.glob(f"**/{name}") if path.is_dir()]
    groups += [path for path in CGROUPS.glob(f"*{DOCKER_CGROUP}") if path.is_dir()]
    single = CGROUPS / DOCKER_CGROUP.strip("/")
    return groups + ([single] if single.is_dir() else [])


def _remove_path(path: Path) -> None:
    if path.is_relative_to(CGROUPS):
        _remove_cgroup(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_cgroup(path: Path) -> None:
    """Remove a cgroup and those inside; its files are the kernel's and vanish with it."""
    for inside in sorted((entry for entry in path.rglob("*") if entry.is_dir()), reverse=True):
        inside.rmdir()
    if path.is_dir():
        path.rmdir()
