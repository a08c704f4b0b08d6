"""The command line of every component, and how each is known to be ready."""

from pathlib import Path

from tests.cluster.api import Api, answers, socket_answers
from tests.cluster.build import Programs
from tests.cluster.layout import (
    API_PORT,
    BRIDGE_ADDRESS,
    DOCKER_BRIDGE,
    DOCKER_CGROUP,
    NODE,
    SERVICE_NETWORK,
    Layout,
)
from tests.cluster.packages import find
from tests.cluster.processes import Component
from tests.cluster.shell import succeeds

ETCD_PORT = 2379


def etcd(layout: Layout, programs: Programs) -> Component:
    """The store; without fsync, since a crash of the machine ends a throw-away cluster anyway."""
    client = f"http://127.0.0.1:{ETCD_PORT}"
    peer = "http://127.0.0.1:2380"
    command = [
        str(programs.kube),
        "etcd",
        f"--data-dir={layout.state}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
    ]
    return Component("etcd", command, lambda: answers("127.0.0.1", ETCD_PORT, "/health"))


def apiserver(layout: Layout, programs: Programs, api: Api) -> Component:
    """The API server, bound to the bridge so that it is not offered to the network outside."""
    secrets = layout.secrets
    command = [
        str(programs.kube),
        "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
        f"--bind-address={BRIDGE_ADDRESS}",
        f"--advertise-address={BRIDGE_ADDRESS}",
        f"--secure-port={API_PORT}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        f"--client-ca-file={secrets}/ca.crt",
        f"--tls-cert-file={secrets}/apiserver.crt",
        f"--tls-private-key-file={secrets}/apiserver.key",
        f"--kubelet-certificate-authority={secrets}/ca.crt",
        f"--kubelet-client-certificate={secrets}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={secrets}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={secrets}/service-account.pub",
        f"--service-account-signing-key-file={secrets}/service-account.key",
        f"--audit-policy-file={layout.settings}/audit.json",
        f"--audit-log-path={layout.logs}/audit.log",
        "--audit-log-maxsize=2000",  # megabytes: a check that counts requests must find all of them in one file
    ]
    return Component("kube-apiserver", command, api.ready)


def controller_manager(layout: Layout, programs: Programs) -> Component:
    """Jobs, garbage collection, service accounts and the rest."""
    secrets = layout.secrets
    command = [
        str(programs.kube),
        "kube-controller-manager",
        f"--kubeconfig={layout.settings}/controller-manager.kubeconfig",
        "--bind-address=127.0.0.1",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--allocate-node-cidrs=false",
        f"--service-account-private-key-file={secrets}/service-account.key",
        f"--root-ca-file={secrets}/ca.crt",
        f"--cluster-signing-cert-file={secrets}/ca.crt",
        f"--cluster-signing-key-file={secrets}/ca.key",
        f"--pv-recycler-pod-template-filepath-hostpath={layout.settings}/recycler.json",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]
    return Component(
        "kube-controller-manager", command, lambda: answers("127.0.0.1", 10257, "/healthz", encrypted=True)
    )


def scheduler(layout: Layout, programs: Programs) -> Component:
    """Places pods on the one node."""
    command = [
        str(programs.kube),
        "kube-scheduler",
        f"--config={layout.settings}/scheduler.json",
        "--bind-address=127.0.0.1",
    ]
    return Component("kube-scheduler", command, lambda: answers("127.0.0.1", 10259, "/healthz", encrypted=True))


def containerd(layout: Layout, programs: Programs) -> Component:
    """The container runtime; ready when it answers the kubelet's protocol, not when its socket appears."""
    wait = [str(programs.kube), "wait-for-runtime", str(layout.containerd_socket), "--timeout=2s"]
    command = [find("containerd") or "containerd", "--config", str(layout.settings / "containerd.toml")]
    return Component("containerd", command, lambda: layout.containerd_socket.exists() and succeeds(wait))


def dockerd(layout: Layout) -> Component:
    """Builds images and runs testcontainers; makes no firewall rules, so that none are left over."""
    command = [
        find("dockerd") or "dockerd",
        f"--config-file={layout.settings}/dockerd.json",
        f"--containerd={layout.containerd_socket}",
        f"--host=unix://{layout.docker_socket}",
        f"--data-root={layout.docker_store}",
        f"--exec-root={layout.sockets}/docker",
        f"--pidfile={layout.sockets}/docker.pid",
        f"--bridge={DOCKER_BRIDGE}",
        f"--cgroup-parent={DOCKER_CGROUP}",
        "--iptables=false",
        "--ip6tables=false",
        "--storage-driver=overlay2",
    ]
    return Component("dockerd", command, lambda: socket_answers(layout.docker_socket, "/_ping"))


def kubelet(layout: Layout, programs: Programs) -> Component:
    """Runs the pods."""
    command = [
        str(programs.kube),
        "kubelet",
        f"--config={layout.settings}/kubelet.json",
        f"--kubeconfig={layout.settings}/kubelet.kubeconfig",
        f"--root-dir={layout.state}/kubelet",
        f"--cert-dir={layout.state}/kubelet/pki",
        f"--hostname-override={NODE}",
        f"--node-ip={BRIDGE_ADDRESS}",
    ]
    return Component("kubelet", command, lambda: answers("127.0.0.1", 10248, "/healthz"))


def proxy(layout: Layout, programs: Programs) -> Component:
    """Makes services reachable."""
    command = [str(programs.kube), "kube-proxy", f"--config={layout.settings}/proxy.json"]
    return Component("kube-proxy", command, lambda: answers("127.0.0.1", 10256, "/healthz"))


def coredns(layout: Layout, programs: Programs) -> Component:
    """Answers names; ready once it knows the services."""
    command = [str(programs.coredns), "-conf", str(layout.settings / "Corefile")]
    return Component("coredns", command, lambda: answers("127.0.0.1", 8181, "/ready"))


def program_link(programs: Programs, folder: Path) -> None:
    """Leave `kubectl` and `helm` where people look for them."""
    folder.mkdir(parents=True, exist_ok=True)
    kubectl = folder / "kubectl"
    kubectl.unlink(missing_ok=True)
    # The multi-call program looks at its first argument, not at the name it was called by.
    kubectl.write_text(f'#!/bin/sh\nexec "{programs.kube}" kubectl "$@"\n')
    kubectl.chmod(0o755)
    helm = folder / "helm"
    helm.unlink(missing_ok=True)
    helm.symlink_to(programs.helm)
