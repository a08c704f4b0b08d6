"""Where everything lies, and which addresses are used: the one place that knows."""

import os
from dataclasses import dataclass
from pathlib import Path

BRIDGE = "flowstone0"
"""The pods' bridge; host processes are reached from pods at its address."""

BRIDGE_ADDRESS = "10.87.0.1"
POD_NETWORK = "10.87.0.0/16"
FIRST_POD_ADDRESS = "10.87.1.0"

DOCKER_BRIDGE = "flowstone1"
"""A bridge of dockerd's own, so that neither touches a docker0 that belongs to somebody else."""

DOCKER_ADDRESS = "10.86.0.1/16"

SERVICE_NETWORK = "10.96.0.0/16"
FIRST_SERVICE_ADDRESS = "10.96.0.1"
"""The API server's own service takes the first address; its certificate must name it."""

NODE = "flowstone-node"
API_PORT = 6443
API_URL = f"https://{BRIDGE_ADDRESS}:{API_PORT}"

DOCKER_CGROUP = "/flowstone-docker"
"""Parent of the cgroups of dockerd's containers."""

MARK = "FLOWSTONE_CLUSTER_PROCESS"
"""Environment variable that every process of the cluster inherits, and by which a left-over is recognised."""


@dataclass(frozen=True)
class Layout:
    """All paths of the cluster that belongs to one checkout."""

    root: Path
    """The project's root; `.cluster/` below it holds what people look at."""

    cache: Path
    """Survives everything: built programs, image contents, wheels, the image stores."""

    state: Path = Path("/var/lib/flowstone-cluster")
    """One cluster's data (etcd, kubelet, volumes); wiped by `down`."""

    sockets: Path = Path("/run/flowstone-cluster")
    """Sockets and mounts; a short path, because a socket's may have at most 108 bytes."""

    lock: Path = Path("/run/lock/flowstone-cluster")

    @property
    def home(self) -> Path:
        """The folder for people: kubeconfig, env, bin, logs."""
        return self.root / ".cluster"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, mode 0600."""
        return self.home / "kubeconfig"

    @property
    def environment(self) -> Path:
        """A shell file that sets KUBECONFIG, DOCKER_HOST and PATH."""
        return self.home / "env"

    @property
    def programs(self) -> Path:
        """Links to kubectl and helm."""
        return self.home / "bin"

    @property
    def logs(self) -> Path:
        """One log per component, and the API server's audit log."""
        return self.home / "logs"

    @property
    def pids(self) -> Path:
        """One file per running component."""
        return self.home / "run"

    @property
    def secrets(self) -> Path:
        """Keys and certificates, mode 0700."""
        return self.home / "pki"

    @property
    def settings(self) -> Path:
        """Generated configuration files of the components."""
        return self.home / "etc"

    @property
    def owner(self) -> Path:
        """Names the checkout whose cluster is on this machine."""
        return self.sockets / "owner"

    @property
    def containerd_socket(self) -> Path:
        """Serves the kubelet and dockerd."""
        return self.sockets / "containerd.sock"

    @property
    def docker_socket(self) -> Path:
        """For image builds and testcontainers."""
        return self.sockets / "docker.sock"

    @property
    def containerd_store(self) -> Path:
        """The node's images; kept, because loading them again costs more than all the rest of a start."""
        return self.cache / "store" / "containerd"

    @property
    def docker_store(self) -> Path:
        """dockerd's images; kept like the node's."""
        return self.cache / "store" / "docker"

    @property
    def volumes(self) -> Path:
        """Directories behind the static persistent volumes."""
        return self.state / "volumes"

    @property
    def pod_logs(self) -> Path:
        """Where containerd writes the containers' output."""
        return self.state / "pod-logs"

    @property
    def go_module(self) -> Path:
        """The multi-call program's source."""
        return self.root / "tests" / "cluster" / "go"


def cache_directory() -> Path:
    """The user's cache directory for this project, by the XDG rule."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "flowstone"


def project_layout() -> Layout:
    """The layout of the checkout that this file belongs to."""
    return Layout(root=Path(__file__).resolve().parents[2], cache=cache_directory())
