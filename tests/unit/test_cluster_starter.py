"""The pure parts of the development cluster's starter (tests/cluster)."""

import base64
import datetime as dt
import fcntl
import hashlib
import io
import ipaddress
import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.cluster import build, certificates, cleanup, flowstone_image, images, packages, processes, rootfs, transfer
from tests.cluster.api import Api
from tests.cluster.cluster import environment_file
from tests.cluster.errors import ClusterError, CommandError, ComponentError
from tests.cluster.layout import MARK, Layout
from tests.cluster.shell import run, run_pipe

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A layout whose every path lies in the test's folder."""
    return Layout(
        root=tmp_path / "project",
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        sockets=tmp_path / "sockets",
        lock=tmp_path / "lock",
    )


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that carries the cluster's mark."""
    process = subprocess.Popen(["sleep", "300"], env={**os.environ, MARK: "test"})
    yield process
    process.kill()
    process.wait()


class TestCertificates:
    def test_server_certificate_names_every_way_to_call_it(self) -> None:
        """Pods call the API by service name and address, people by the bridge's address; each must be in the SAN."""
        ca = certificates.authority(NOW)
        made = certificates.server_certificate(ca, "kube-apiserver", certificates.SERVER_NAMES, NOW)
        names = made.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(names.get_values_for_type(x509.IPAddress)) == {
            ipaddress.ip_address(address) for address in ("127.0.0.1", "10.87.0.1", "10.96.0.1")
        }
        assert "kubernetes.default.svc" in names.get_values_for_type(x509.DNSName)
        assert "kubernetes.default.svc.cluster.local" in names.get_values_for_type(x509.DNSName)
        made.certificate.verify_directly_issued_by(ca.certificate)

    def test_node_certificate_speaks_for_the_node(self) -> None:
        """The node authorizer wants user system:node:NAME in group system:nodes."""
        (client,) = (client for client in certificates.CLIENTS if client.file == "kubelet")
        subject = certificates.client_certificate(certificates.authority(NOW), client, NOW).certificate.subject
        assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:flowstone-node"
        assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"

    def test_keys_are_readable_by_the_owner_alone(self, tmp_path: Path) -> None:
        """Every private key has mode 0600, in a folder of mode 0700; the API client accepts the set."""
        folder = tmp_path / "pki"
        certificates.write_all(folder, NOW)
        assert {stat.S_IMODE(key.stat().st_mode) for key in folder.glob("*.key")} == {0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        Api(folder)


class TestProcesses:
    def test_start_time_is_read_behind_any_name(self) -> None:
        """A process may call itself `a) S 1 (b`; field 22 is still found, and a zombie counts as gone."""
        numbers = " ".join(str(number) for number in range(4, 53))  # fields 4 to 52; field 22 is 22
        assert processes.parse_start_time(f"7 (a) S 1 (b) S {numbers}") == 22
        assert processes.parse_start_time(f"7 (a) Z {numbers}") is None

    def test_a_reused_process_id_is_not_ours(self) -> None:
        """The same id with another start time, or of another boot, is somebody else's process."""
        started = processes.start_time(os.getpid())
        assert started is not None
        mine = processes.Record("test", os.getpid(), started, processes.boot_id())
        assert processes.alive(mine)
        assert not processes.alive(processes.Record("test", os.getpid(), started + 1, processes.boot_id()))
        assert not processes.alive(processes.Record("test", os.getpid(), started, "another boot"))

    def test_the_mark_is_found_in_an_environment(self) -> None:
        """Only a variable with exactly our name counts, whatever its value."""
        assert processes.mark_of(b"A=1\0FLOWSTONE_CLUSTER_PROCESS=etcd\0B=2\0") == "etcd"
        assert processes.mark_of(b"XFLOWSTONE_CLUSTER_PROCESS=etcd\0A=FLOWSTONE_CLUSTER_PROCESS=x\0") is None

    def test_a_process_in_a_container_is_known_by_its_cgroup(self) -> None:
        """The container's id is a whole element of the path, in any hierarchy."""
        ids = frozenset({"abc"})
        assert processes.in_container("4:memory:/k8s.io/abc\n0::/\n", ids)
        assert processes.in_container("0::/flowstone-docker/abc/inner\n", ids)
        assert not processes.in_container("4:memory:/k8s.io/abcd\n", ids)

    def test_only_what_was_found_is_killed(self, sleeper: subprocess.Popen[bytes]) -> None:
        """A marked process ends, an unmarked one goes on."""
        other = subprocess.Popen(["sleep", "300"])
        found = [pid for pid in processes.owned_processes(frozenset()) if pid in (sleeper.pid, other.pid)]
        assert found == [sleeper.pid]
        assert processes.kill_all(lambda: [pid for pid in found if processes.start_time(pid)]) == 1
        assert sleeper.wait() == -9
        assert other.poll() is None
        other.kill()
        other.wait()

    def test_a_component_that_ends_is_named_with_its_last_words(self, layout: Layout) -> None:
        """The message has the component and the end of its log, not a bare time-out."""
        component = processes.Component("broken", ["sh", "-c", "echo no such bridge; exit 3"], lambda: False)
        record = processes.start(component, layout)
        with pytest.raises(ComponentError, match=r"broken ended while it started.*\n.*no such bridge"):
            processes.wait_until_ready(component, record, layout)
        os.waitpid(record.pid, 0)

    def test_a_component_that_hangs_is_named_with_its_last_words(self, layout: Layout) -> None:
        """The same when it neither ends nor becomes ready."""
        command = ["sh", "-c", "echo still waiting; exec sleep 300"]
        component = processes.Component("slow", command, lambda: False, patience=0.5)
        record = processes.start(component, layout)
        try:
            with pytest.raises(ComponentError, match=r"slow was not ready after 0 s.*\n.*still waiting"):
                processes.wait_until_ready(component, record, layout)
        finally:
            os.kill(record.pid, 9)
            os.waitpid(record.pid, 0)

    def test_a_component_keeps_no_lock_of_its_starters(self, layout: Layout) -> None:
        """Started under `flock FILE make cluster`, it does not hold FILE for as long as it lives."""
        with layout.lock.open("w") as lock:
            os.set_inheritable(lock.fileno(), True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            record = processes.start(processes.Component("slow", ["sleep", "300"], lambda: True), layout)
        try:
            with layout.lock.open("w") as again:
                fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.kill(record.pid, 9)
            os.waitpid(record.pid, 0)

    def test_a_torn_pid_file_counts_as_absent(self, layout: Layout) -> None:
        """A file that a killed starter left half written does not stop the next one."""
        layout.pids.mkdir(parents=True)
        (layout.pids / "etcd.json").write_text('{"name": "etc')
        assert processes.records(layout) == []


class TestBuild:
    def test_the_cache_key_depends_on_every_source_and_the_compiler(self, tmp_path: Path) -> None:
        """A change of any file of the module, or of Go, gives another key; the same content gives the same."""
        for name in build.MODULE_FILES:
            (tmp_path / name).write_text(name)
        keys = {build.kube_key(tmp_path, "go1.26.8"), build.kube_key(tmp_path, "go1.26.9")}
        assert len(keys) == 2
        for name in build.MODULE_FILES:
            (tmp_path / name).write_text(name + " changed")
            keys.add(build.kube_key(tmp_path, "go1.26.8"))
        assert len(keys) == 2 + len(build.MODULE_FILES)
        assert build.kube_key(tmp_path, "go1.26.8") in keys

    def test_every_go_file_of_the_module_is_in_the_key(self) -> None:
        """A source that was forgotten there would leave an old program in use."""
        module = Path(build.__file__).parent / "go"
        assert {path.name for path in module.iterdir()} == set(build.MODULE_FILES)

    def test_the_stamped_version_is_the_module_s(self) -> None:
        """kubectl and helm see the version that go.mod requires."""
        module = (Path(build.__file__).parent / "go" / "go.mod").read_text()
        assert f"k8s.io/kubernetes v{build.KUBERNETES_VERSION}\n" in module

    def test_parts_do_not_run_together(self) -> None:
        """The border between two parts is a part of the key."""
        assert build.content_key([b"ab", b"c"]) != build.content_key([b"a", b"bc"])


class TestPackages:
    @pytest.mark.parametrize(("separate", "client"), [(True, "docker-cli"), (False, "docker.io")])
    def test_missing_programs_name_their_packages_once(self, separate: bool, client: str) -> None:
        """Two programs of one package ask for it once; the Docker client's package depends on the release."""
        needs = [packages.Need("ctr", "containerd"), packages.Need("containerd", "containerd")]
        needs += [packages.Need("docker", "docker-cli"), packages.Need("ip", "iproute2")]
        found = packages.missing_packages(needs, lambda name: "/bin/ip" if name == "ip" else None, separate)
        assert found == ["containerd", client]

    def test_debian_s_main_archive_is_the_mirror(self) -> None:
        """Security and update archives, and other vendors' repositories, are no place to start a system from."""
        targets = """\
main nodistro https://node.example/node_20.x/
main bookworm-updates http://mirror.example/debian/
main bookworm http://mirror.example/debian/
main bookworm-security http://mirror.example/debian-security/
"""
        assert rootfs.debian_mirror(targets) == "http://mirror.example/debian/"
        with pytest.raises(ClusterError, match="apt has no source"):
            rootfs.debian_mirror("main nodistro https://node.example/node_20.x/\n")


class TestCleanup:
    def test_mounts_are_taken_from_the_inside_out(self) -> None:
        """Only mounts at or below our folders, the innermost first; escaped characters are read."""
        table = """\
21 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
90 21 254:0 /x /var/lib/ours rw - ext4 /dev/vda rw
91 90 0:50 / /var/lib/ours/pods/a\\040b rw - tmpfs tmpfs rw
92 21 0:51 / /var/lib/ours-not rw - tmpfs tmpfs rw
"""
        assert cleanup.mounts_below(table, [Path("/var/lib/ours")]) == ["/var/lib/ours/pods/a b", "/var/lib/ours"]


class TestImages:
    def test_a_name_with_other_content_is_not_there(self) -> None:
        """The node has an image when its name and its id point to the same manifest."""
        table = """\
REF TYPE DIGEST SIZE PLATFORMS LABELS
localhost/a:dev application/x sha256:m2 1.0 MiB linux/amd64 io.cri-containerd.image=managed
sha256:id1 application/x sha256:m1 1.0 MiB linux/amd64 io.cri-containerd.image=managed
sha256:id2 application/x sha256:m2 1.0 MiB linux/amd64 io.cri-containerd.image=managed
localhost/c:dev application/x sha256:m2 1.0 MiB linux/amd64 io.cri-containerd.image=
"""
        present = images.parse_node_images(table)
        assert images.node_has(present, "localhost/a:dev", "sha256:id2")
        assert not images.node_has(present, "localhost/a:dev", "sha256:id1")
        assert not images.node_has(present, "localhost/a:dev", "sha256:id3")
        assert not images.node_has(present, "localhost/b:dev", "sha256:id2")
        assert not images.node_has(present, "localhost/c:dev", "sha256:id2")  # not taken note of yet

    def test_the_newest_contents_are_kept(self) -> None:
        """Of tags from the newest to the oldest, `dev` and three others stay."""
        assert images.superseded(["dev", "5", "4", "3", "2", "1"]) == ["2", "1"]

    def test_a_layer_is_put_together_byte_by_byte(self, tmp_path: Path) -> None:
        """Headers come from the split, contents from the folder; the result is the original tar."""
        files = tmp_path / "files"
        files.mkdir()
        (files / "one").write_bytes(b"x" * 700)
        (files / "empty").touch()
        original = io.BytesIO()
        with tarfile.open(fileobj=original, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            archive.add(files / "one", "one")
            archive.add(files / "empty", "empty")
        data = original.getvalue()
        split = [
            {"type": 2, "payload": base64.b64encode(data[:512]).decode()},
            {"type": 1, "name": "one", "size": 700, "payload": "crc"},
            {"type": 2, "payload": base64.b64encode(data[512 + 700 :]).decode()},
            {"type": 1, "name": "empty"},
        ]
        lines = [json.dumps(entry).encode() for entry in split]
        assert b"".join(transfer.layer_tar(lines, files)) == data

    def test_a_stack_is_named_by_the_stack_below_and_its_layer(self) -> None:
        """ChainID(L0|..|Ln) = digest(ChainID(L0|..|Ln-1) + " " + DiffID(Ln)), OCI image specification."""
        second = "sha256:" + hashlib.sha256(b"sha256:a sha256:b").hexdigest()
        third = "sha256:" + hashlib.sha256(f"{second} sha256:c".encode()).hexdigest()
        assert transfer.chain_ids(["sha256:a", "sha256:b", "sha256:c"]) == ["sha256:a", second, third]

    def test_an_unknown_store_is_not_guessed_at(self, tmp_path: Path) -> None:
        """Without dockerd's files the whole image has to be saved instead."""
        with pytest.raises(transfer.UnknownStoreError):
            transfer.write_archive(tmp_path, {"a:b": "sha256:c"}, frozenset(), tmp_path / "archive.tar")


class TestFlowStoneImage:
    def test_the_project_s_dockerfile_has_the_seam(self) -> None:
        """A code change rebuilds what stands behind it alone, so the dependencies must stand before."""
        first, second = flowstone_image.split_stages((Path(build.__file__).parents[2] / "Dockerfile").read_text())
        assert "COPY build/image/deps" in first
        assert "COPY build/image/app" in second
        assert "USER 65532" in second

    def test_a_package_is_left_out_with_its_hashes(self) -> None:
        """What is indented below a package belongs to it."""
        lock = (
            "a==1 \\\n    --hash=sha256:1\n    # via x\nb-c==2 \\\n    --hash=sha256:2\nd==3 \\\n    --hash=sha256:3\n"
        )
        kept = "a==1 \\\n    --hash=sha256:1\n    # via x\nd==3 \\\n    --hash=sha256:3\n"
        assert flowstone_image.without(lock, ["b-c"]) == kept

    def test_the_code_s_key_ignores_what_python_leaves(self, tmp_path: Path) -> None:
        """Byte code does not count; a source, its name and a migration do."""
        for name in ("operator/flowstone/a.py", "migrations/1.py", "pyproject.toml", "README.md"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        key = flowstone_image.code_key(tmp_path)
        (tmp_path / "operator/flowstone/__pycache__").mkdir()
        (tmp_path / "operator/flowstone/__pycache__/a.cpython-311.pyc").touch()
        assert flowstone_image.code_key(tmp_path) == key
        shutil.move(tmp_path / "migrations/1.py", tmp_path / "migrations/2.py")
        assert flowstone_image.code_key(tmp_path) != key


class TestShell:
    def test_a_failing_program_is_quoted(self) -> None:
        """The message has the command and the end of what it said."""
        with pytest.raises(CommandError, match=r"sh -c .* failed with exit code 4:\n +out of cheese"):
            run(["sh", "-c", "echo out of cheese >&2; exit 4"])

    def test_either_side_of_a_pipe_may_fail(self) -> None:
        """An error of the first program is not hidden by the second one's success."""
        with pytest.raises(CommandError, match="exit code 5"):
            run_pipe(["sh", "-c", "exit 5"], ["cat"], env={})

    def test_the_environment_file_survives_a_shell(self, tmp_path: Path) -> None:
        """A path with a space and a quote arrives in KUBECONFIG unchanged."""
        odd = Layout(root=tmp_path / "it's here", cache=tmp_path)
        (tmp_path / "env").write_text(environment_file(odd))
        printed = run(["sh", "-c", f'. {tmp_path}/env; printf %s "$KUBECONFIG"'])
        assert printed == str(tmp_path / "it's here/.cluster/kubeconfig")
