"""The Debian packages that the cluster needs: installed when allowed, named exactly when not."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.layout import Layout
from tests.cluster.progress import Progress
from tests.cluster.shell import run_long

CNI_PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins puts them."""


@dataclass(frozen=True)
class Need:
    """A program, and the Debian package that brings it."""

    program: str
    package: str


NEEDS = (
    Need("containerd", "containerd"),
    Need("ctr", "containerd"),
    Need("runc", "runc"),
    Need("dockerd", "docker.io"),
    Need("docker", "docker-cli"),
    Need("debootstrap", "debootstrap"),
    Need("ip", "iproute2"),
    Need("nft", "nftables"),  # kube-proxy calls it
    Need("iptables", "iptables"),  # dockerd refuses a bridge network without it, even when told not to use it
    Need("mount", "mount"),
    Need("umount", "mount"),
    Need("tar", "tar"),
    Need(str(CNI_PLUGINS / "bridge"), "containernetworking-plugins"),
    Need(str(CNI_PLUGINS / "host-local"), "containernetworking-plugins"),
)

APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
"""Says `Y` where the kernel enforces AppArmor; then runtimes load a profile and need its compiler."""


def find(program: str) -> str | None:
    """Where a program is; system folders count also for a PATH that lacks them."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing_packages(
    needs: Iterable[Need] = NEEDS, find: Callable[[str], str | None] = find, separate_client: bool = True
) -> list[str]:
    """The packages to install, each once, in the order of need.

    Args:
        needs: what the cluster calls.
        find: where a program is, or None.
        separate_client: the Docker client has a package of its own; before Debian 13 it is a part of docker.io.
    """
    absent = [need.package for need in needs if find(need.program) is None]
    names = [name if separate_client or name != "docker-cli" else "docker.io" for name in absent]
    return list(dict.fromkeys(names))


def install_command(packages: Iterable[str]) -> str:
    """The command that a person would type."""
    return "apt-get update && apt-get install --yes --no-install-recommends " + " ".join(packages)


def ensure_packages(layout: Layout, progress: Progress) -> None:
    """Install what is missing.

    Raises:
        ClusterError: something is missing and this user may not install it, or this is no Debian.
    """
    needs = [*NEEDS, Need("apparmor_parser", "apparmor")] if _apparmor_enforced() else NEEDS
    packages = missing_packages(needs, separate_client=_debian_release() >= 13)
    if not packages:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(f"Debian packages are missing; install them as root with:\n    {install_command(packages)}")
    progress(f"installing Debian packages: {' '.join(packages)}")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    log = layout.logs / "apt.log"
    run_long(["apt-get", "update"], log, progress, "apt-get update", env=environment)
    # policy-rc.d would be the usual way to keep the daemons from starting, but it may belong to somebody else;
    # services that do start use other sockets than ours and do no harm.
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    run_long(command, log, progress, "apt-get install", env=environment)


def ensure_root() -> None:
    """Say clearly why an ordinary user cannot start the cluster.

    Raises:
        ClusterError: this process is not root's.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            "the cluster needs root (network bridge, mounts, containers): run the same command with sudo,\n"
            "or name another cluster in KUBECONFIG, which is then used instead"
        )


def _apparmor_enforced() -> bool:
    return APPARMOR.exists() and APPARMOR.read_text().strip() == "Y"


def _debian_release() -> int:
    """The release's number; an unnamed one (testing) counts as the newest."""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_ID="):
            return int(line.partition("=")[2].strip('"').partition(".")[0])
    return 99
