"""Guards of the project itself: what must never be true of the tracked files."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cluster.build import HELM
from tests.cluster.images import DOCKER_API
from tests.cluster.layout import API_URL, project_layout

ROOT = Path(__file__).resolve().parents[2]

REGISTRY = re.compile(
    r"\b(?:files\.pythonhosted\.org|pypi\.org|registry\.npmjs\.org|proxy\.golang\.org|sum\.golang\.org"
    r"|deb\.debian\.org|index-url|extra-index-url|GOPROXY=http)"
)
"""Addresses that only a machine's own configuration may name."""

HERE = re.compile(r"/work/(?:main|shared)\b|/home/[a-z][a-z0-9_-]*/")
"""Paths of one machine."""


def tracked() -> list[Path]:
    """Files that git knows or would add, so that a guard speaks before the commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def offenders(pattern: re.Pattern[str]) -> list[str]:
    """Each place in a tracked text file that the pattern matches, as file:line."""
    found = []
    for path in tracked():
        if path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text("utf-8", errors="ignore").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


def locked_versions(name: str) -> dict[str, str]:
    """Version by package of one lock file."""
    text = (ROOT / "requirements" / name).read_text("utf-8")
    return {
        canonicalize_name(package): version for package, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)
    }


def project() -> dict[str, list[str]]:
    """The requirements of pyproject.toml: at run time, with the extra, and for development."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = data["project"]["optional-dependencies"]
    return {
        "runtime": data["project"]["dependencies"] + [one for extra in extras.values() for one in extra],
        "dev": data["dependency-groups"]["dev"],
    }


def test_source_root_never_becomes_a_package() -> None:
    """`operator/` is a folder: as a package it would hide the standard library's module of that name."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "operator" / "__init__.pyi").exists()


def test_standard_operator_module_is_untouched() -> None:
    """`import operator` is the standard library's, also from the project's root."""
    code = "import operator; print(operator.itemgetter(1)('ab'))"
    assert subprocess.run(["python3", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "b\n"


def test_no_tracked_file_names_a_registry() -> None:
    """Where packages come from is a setting of the machine; a file with an address breaks elsewhere."""
    assert offenders(REGISTRY) == []


def test_no_tracked_file_names_a_path_of_this_machine() -> None:
    """A clone works wherever it lies."""
    assert offenders(HERE) == []


@pytest.mark.parametrize(
    "text", ["files.pythonhosted.org/packages/x", "--index-url http", "GOPROXY=https://proxy.golang.org"]
)
def test_registry_guard_sees_an_address(text: str) -> None:
    """The guard itself can fail: it recognises the addresses that it is there for."""
    assert REGISTRY.search(text)


@pytest.mark.parametrize(("lock", "groups"), [("runtime.lock", ["runtime"]), ("dev.lock", ["runtime", "dev"])])
def test_lock_is_in_step_with_pyproject(lock: str, groups: list[str]) -> None:
    """Every requirement is locked, at a version that the requirement allows."""
    versions = locked_versions(lock)
    for requirement in (Requirement(text) for group in groups for text in project()[group]):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is missing in {lock}"
        assert requirement.specifier.contains(version), (
            f"{lock} has {requirement.name} {version}, not {requirement.specifier}"
        )


@pytest.mark.parametrize("lock", ["runtime.lock", "dev.lock"])
def test_every_locked_package_has_a_hash(lock: str) -> None:
    """`pip install --require-hashes` accepts the file."""
    blocks = re.split(r"\n(?=[\w.-]+==)", (ROOT / "requirements" / lock).read_text("utf-8"))
    without = [block.split(" ")[0] for block in blocks if "==" in block and "--hash=sha256:" not in block]
    assert without == []


def test_both_locks_agree() -> None:
    """What is tested is what is shipped: no package has two versions."""
    runtime, dev = locked_versions("runtime.lock"), locked_versions("dev.lock")
    assert {name: version for name, version in runtime.items() if dev.get(name) != version} == {}


def test_makefile_knows_where_the_own_cluster_is() -> None:
    """Its three constants are those of the starter."""
    layout = project_layout()
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert f"OWN_SERVER := {API_URL}\n" in makefile
    assert f"OWN_DOCKER := {layout.docker_socket}\n" in makefile
    assert f"DOCKER_API_VERSION={DOCKER_API} " in makefile
    assert f"$(CURDIR)/{layout.kubeconfig.relative_to(layout.root)}\n" in makefile


def test_makefile_builds_the_helm_of_the_own_cluster() -> None:
    """A given cluster is installed to with the same helm that the tests use."""
    assert f"{HELM.package}@{HELM.version};" in (ROOT / "Makefile").read_text("utf-8")
