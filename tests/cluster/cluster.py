"""Up, down and status: the order in which everything happens.

There is one cluster per machine, because its bridge, its ports and its image stores are the machine's. A living
one of another checkout is left alone; a dead one's remains are removed, whoever's they were.
"""

import datetime as dt
import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster import certificates, components, configuration
from tests.cluster.api import Api
from tests.cluster.build import Programs, build_programs
from tests.cluster.check import check_from_a_pod, node_ready
from tests.cluster.cleanup import forget_containers, leftovers, remove
from tests.cluster.errors import ClusterError
from tests.cluster.images import DOCKER_API, discard_containers, discard_images, ensure_base_images, prepare_archives
from tests.cluster.layout import NODE, Layout
from tests.cluster.network import create_bridges
from tests.cluster.objects import apply_objects
from tests.cluster.packages import ensure_packages
from tests.cluster.processes import (
    Component,
    Record,
    alive,
    records,
    running_components,
    start,
    wait_until,
    wait_until_ready,
)
from tests.cluster.progress import Progress
from tests.cluster.shell import discard_scratch, write

COMPONENTS = (
    "etcd",
    "containerd",
    "kube-apiserver",
    "dockerd",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
)


def up(layout: Layout, progress: Progress) -> None:
    """Have a cluster that works; one that does is left as it is.

    Raises:
        ClusterError: with what failed and what to do.
    """
    _refuse_foreign_cluster(layout)
    ensure_packages(layout, progress)
    if healthy(layout):
        ensure_base_images(layout, progress)
    else:
        _clear(layout, progress)
        _start(layout, _prepare(layout, progress), progress)
    progress(f"the cluster is up; `. {layout.environment}` sets KUBECONFIG, DOCKER_HOST and PATH")


def down(layout: Layout, progress: Progress, *, force: bool = False) -> None:
    """End the cluster and check that nothing of it is left.

    Args:
        layout: this checkout's.
        progress: told what happens.
        force: also end a living cluster of another checkout.

    Raises:
        ClusterError: something is left; the message names it.
    """
    if not force:
        _refuse_foreign_cluster(layout)
    ended = remove(layout)
    rest = leftovers(layout).lines()
    if rest:
        raise ClusterError("after the end of the cluster these are left:\n    " + "\n    ".join(rest))
    progress(f"the cluster is down ({ended} processes ended), nothing is left")


def status(layout: Layout, progress: Progress) -> bool:
    """Print what runs, and return whether the cluster works."""
    found = {record.name: record for record in records(layout)}
    for name in COMPONENTS:
        record = found.get(name)
        progress(f"{name:24} {_state(record)}")
    works = healthy(layout)
    progress("the cluster works" if works else "the cluster does not work; start it with `up`")
    return works


def healthy(layout: Layout) -> bool:
    """Whether every component runs, the API server is ready and the node takes pods."""
    running = {record.name for record in records(layout) if alive(record)}
    if running != set(COMPONENTS) or not layout.kubeconfig.exists():
        return False
    api = Api(layout.secrets)
    return api.ready() and node_ready(api)


def _state(record: Record | None) -> str:
    if record is None:
        return "not started"
    return f"runs as process {record.pid}" if alive(record) else "ended"


def _refuse_foreign_cluster(layout: Layout) -> None:
    owner = _owner(layout)
    if owner is None or owner == layout.root or not owner.is_dir():
        return
    if "kube-apiserver" in running_components():
        raise ClusterError(
            f"the cluster of {owner} is running, and a machine has room for one; end it first with:\n"
            f"    cd {shlex.quote(str(owner))} && .venv/bin/python -m tests.cluster down"
        )


def _owner(layout: Layout) -> Path | None:
    try:
        return Path(json.loads(layout.owner.read_text())["root"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _clear(layout: Layout, progress: Progress) -> None:
    """Remove what an ended or broken cluster left, and say which component had ended."""
    ended = [record.name for record in records(layout) if not alive(record)]
    if ended:
        progress(f"ended since the last start: {', '.join(ended)}")
    rest = leftovers(layout).lines()
    if rest:
        progress(f"removing what is left of an earlier cluster ({'; '.join(line.partition(':')[0] for line in rest)})")
    remove(layout)
    for folder in ("go", "images", "python"):
        discard_scratch(layout.cache / folder)


def _prepare(layout: Layout, progress: Progress) -> Programs:
    """Build programs and images at the same time: one waits for the processor, the other for the network."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        archives = pool.submit(prepare_archives, layout, progress)
        programs = pool.submit(build_programs, layout, progress)
        for job in (archives, programs):
            job.add_done_callback(lambda done: progress(str(done.exception())) if done.exception() else None)
        archives.result()
        return programs.result()


def _start(layout: Layout, programs: Programs, progress: Progress) -> None:
    try:
        _start_from_nothing(layout, programs, progress)
    except ClusterError:
        remove(layout)  # a half cluster would only be in the way; the logs stay
        raise


def _start_from_nothing(layout: Layout, programs: Programs, progress: Progress) -> None:
    layout.state.mkdir(parents=True, exist_ok=True)
    layout.sockets.mkdir(parents=True, exist_ok=True)
    write(layout.owner, json.dumps({"root": str(layout.root)}))
    certificates.write_all(layout.secrets, dt.datetime.now(dt.UTC))
    configuration.write_settings(layout)
    forget_containers(layout, programs.kube)
    (layout.logs / "audit.log").unlink(missing_ok=True)  # else requests to the last cluster would be counted too
    create_bridges()
    api = Api(layout.secrets)
    _start_all(layout, programs, api, progress)
    wait_until(lambda: node_ready(api), 60, f"node {NODE} did not become Ready", layout.logs / "kubelet.log")
    progress("the node is Ready")
    check_from_a_pod(api)
    progress("a pod reaches API, DNS, services and host")
    _leave_for_people(layout, programs)


def _start_all(layout: Layout, programs: Programs, api: Api, progress: Progress) -> None:
    """Start what waits for nothing first, and load images while the control plane comes up."""

    def launch(*group: Component) -> None:
        started = [(component, start(component, layout)) for component in group]
        for component, record in started:
            wait_until_ready(component, record, layout)
        progress(f"ready: {', '.join(component.name for component in group)}")

    launch(components.etcd(layout, programs), components.containerd(layout, programs))
    launch(components.apiserver(layout, programs, api), components.dockerd(layout))
    apply_objects(api, layout)
    launch(
        components.controller_manager(layout, programs),
        components.scheduler(layout, programs),
        components.kubelet(layout, programs),
        components.proxy(layout, programs),
        components.coredns(layout, programs),
    )
    discard_containers(layout)
    discard_images(layout)
    ensure_base_images(layout, progress)


def _leave_for_people(layout: Layout, programs: Programs) -> None:
    components.program_link(programs, layout.programs)
    write(layout.environment, environment_file(layout))
    # Last: its presence says that the cluster works.
    write(layout.kubeconfig, configuration.kubeconfig(layout.secrets, "admin"), mode=0o600)


def environment_file(layout: Layout) -> str:
    """Shell lines that point kubectl, helm, docker and testcontainers to this cluster."""
    return f"""\
export KUBECONFIG={shlex.quote(str(layout.kubeconfig))}
export DOCKER_HOST=unix://{layout.docker_socket}
export DOCKER_API_VERSION={DOCKER_API}
export DOCKER_BUILDKIT=0
export TESTCONTAINERS_RYUK_DISABLED=true
export PATH={shlex.quote(str(layout.programs))}:"$PATH"
"""
