"""The configuration file of every component, as text: what this machine needs and why.

JSON is YAML, so what Kubernetes reads is written as JSON. Nothing here touches a disk but `write_settings`.
"""

import base64
import json
from pathlib import Path
from typing import Any

from tests.cluster.layout import (
    API_URL,
    BRIDGE,
    BRIDGE_ADDRESS,
    FIRST_POD_ADDRESS,
    NODE,
    POD_NETWORK,
    Layout,
)
from tests.cluster.packages import CNI_PLUGINS
from tests.cluster.rootfs import BASE, PAUSE
from tests.cluster.shell import write

CNI_NETWORK = "flowstone"

CLIENT_RATE = {"qps": 200, "burst": 400}
"""Requests per second that a component may make; the upstream 20 to 50 would be what a test measures."""


def kubeconfig(secrets: Path, client: str) -> str:
    """A kubeconfig that contains its certificates, so that it can be copied as one file."""

    def encoded(name: str) -> str:
        return base64.b64encode((secrets / name).read_bytes()).decode()

    cluster = {"server": API_URL, "certificate-authority-data": encoded("ca.crt")}
    user = {
        "client-certificate-data": encoded(f"{client}.crt"),
        "client-key-data": encoded(f"{client}.key"),
    }
    name = "flowstone"
    return _json(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": client, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": client}}],
            "current-context": name,
        }
    )


def audit_policy() -> str:
    """Who asked for what, of every request, written once it is answered: the checks count writes by it."""
    return _json(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        }
    )


def scheduler(client_config: Path) -> str:
    """One scheduler, which needs no election."""
    return _json(
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            "clientConnection": {"kubeconfig": str(client_config), **CLIENT_RATE},
        }
    )


def kubelet(layout: Layout) -> str:
    """A kubelet inside a container or virtual machine that shares the machine with other work."""
    return _json(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
            "address": BRIDGE_ADDRESS,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(layout.secrets / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(layout.secrets / "kubelet-server.crt"),
            "tlsPrivateKeyFile": str(layout.secrets / "kubelet-server.key"),
            # The machine may have cgroup v1, no systemd, and cgroups that are not ours to arrange.
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,  # kube-proxy uses nftables; these chains would only be left over
            "clusterDNS": [BRIDGE_ADDRESS],
            "clusterDomain": "cluster.local",
            "maxPods": 250,
            "serializeImagePulls": False,
            "podLogsDir": str(layout.pod_logs),
            "volumePluginDir": str(layout.state / "volume-plugins"),
            # The images cannot be pulled again, so a full disk must not make the kubelet drop them.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "kubeAPIQPS": CLIENT_RATE["qps"],
            "kubeAPIBurst": CLIENT_RATE["burst"],
        }
    )


def proxy(client_config: Path) -> str:
    """Services by nftables. Conntrack's limits are the machine's and stay as they are."""
    return _json(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": NODE,
            "clusterCIDR": POD_NETWORK,
            "bindAddress": BRIDGE_ADDRESS,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "clientConnection": {"kubeconfig": str(client_config), **CLIENT_RATE},
            "conntrack": {"maxPerCore": 0, "min": 0},
            # Pods share one bridge, so an answer would take the short way past the address translation
            # wherever the kernel does not pass bridged packets through it.
            "nftables": {"masqueradeAll": True},
        }
    )


def recycler_pod() -> str:
    """The pod that empties a volume once its claim is gone, so that the next claim gets it.

    Kubernetes advises dynamic provisioners instead; for a handful of folders on one node this is all that is needed.
    """
    container = {
        "name": "recycler",
        "image": BASE.reference,
        "imagePullPolicy": "Never",
        "command": ["find", "/scrub", "-mindepth", "1", "-delete"],
        "volumeMounts": [{"name": "volume", "mountPath": "/scrub"}],
    }
    return _json(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "volume-recycler-", "namespace": "kube-system"},
            "spec": {
                "activeDeadlineSeconds": 60,
                "restartPolicy": "Never",
                # The controller puts the volume in the place of the first one.
                "volumes": [{"name": "volume", "hostPath": {"path": "/nonexistent"}}],
                "containers": [container],
            },
        }
    )


def cni(layout: Layout) -> str:
    """Pods on one bridge, with no iptables rule per pod: they need the cluster and the host, not the world."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(layout.state / "addresses"),
            "ranges": [[{"subnet": POD_NETWORK, "rangeStart": FIRST_POD_ADDRESS, "gateway": BRIDGE_ADDRESS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return _json({"cniVersion": "0.4.0", "name": CNI_NETWORK, "plugins": [bridge]})


def corefile(client_config: Path) -> str:
    """The cluster's DNS, asked by pods at the bridge's address.

    The time-to-live is short because tests make and delete services quickly.
    """
    return f"""\
.:53 {{
    bind {BRIDGE_ADDRESS}
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {client_config}
        ttl 2
    }}
    forward . /etc/resolv.conf
    cache 2
}}
"""


def containerd(layout: Layout) -> str:
    """One containerd for the kubelet and dockerd, apart from any other on the machine."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{layout.containerd_store}"
state = "{layout.sockets}/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
address = "{layout.containerd_socket}"

[{cri}]
sandbox_image = "{PAUSE.reference}"
# Root may lack CAP_SYS_RESOURCE; without this every sandbox then ends with
# "can't get final child's PID from pipe: EOF".
restrict_oom_score_adj = true
# Below our own folder, so that they are found again after a kill.
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"

[{cri}.containerd]
snapshotter = "overlayfs"

[{cri}.cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{layout.settings}/cni"
"""


def write_settings(layout: Layout) -> None:
    """Write every file; the kubeconfigs hold keys and are readable by the owner alone."""
    for client in ("controller-manager", "scheduler", "kubelet", "proxy", "coredns"):
        write(layout.settings / f"{client}.kubeconfig", kubeconfig(layout.secrets, client), mode=0o600)
    files = {
        "audit.json": audit_policy(),
        "scheduler.json": scheduler(layout.settings / "scheduler.kubeconfig"),
        "kubelet.json": kubelet(layout),
        "proxy.json": proxy(layout.settings / "proxy.kubeconfig"),
        "cni/10-flowstone.conflist": cni(layout),
        "recycler.json": recycler_pod(),
        "Corefile": corefile(layout.settings / "coredns.kubeconfig"),
        "containerd.toml": containerd(layout),
        "dockerd.json": "{}",
    }
    for name, text in files.items():
        write(layout.settings / name, text)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
