"""The Go programs: built once per content, kept in the user's cache."""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.layout import Layout
from tests.cluster.progress import Progress
from tests.cluster.shell import run, run_long, scratch

KUBERNETES_VERSION = "1.37.2"
"""Must agree with the go.mod beside; stamped into the programs, because kubectl and helm look at it."""

MODULE_FILES = ("go.mod", "go.sum", "main.go", "runtime.go")

BUILD_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}

TAGS = "selinux,notest,grpcnotrace"


@dataclass(frozen=True)
class Tool:
    """A program that is built from a published module as it is."""

    name: str
    package: str
    version: str


COREDNS = Tool("coredns", "github.com/coredns/coredns", "v1.15.0")
HELM = Tool("helm", "helm.sh/helm/v4/cmd/helm", "v4.3.1")


@dataclass(frozen=True)
class Programs:
    """The built programs of a cluster."""

    kube: Path
    coredns: Path
    helm: Path


def go_version() -> str:
    """The Go compiler's version, such as `go1.26.8`.

    Raises:
        ClusterError: no Go is installed.
    """
    if shutil.which("go") is None:
        raise ClusterError("Go is not on PATH: install Go 1.26 or newer, which builds Kubernetes from its Go modules")
    return run(["go", "env", "GOVERSION"]).strip()


def content_key(parts: Iterable[bytes]) -> str:
    """A short name for a content: the same parts in the same order give the same name."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))  # so that ("ab", "c") and ("a", "bc") differ
        digest.update(part)
    return digest.hexdigest()[:16]


def kube_key(module: Path, compiler: str) -> str:
    """The cache key of the multi-call program: its sources, the compiler and how it is called."""
    sources = [(module / name).read_bytes() for name in MODULE_FILES]
    return content_key([*sources, compiler.encode(), TAGS.encode(), _linker_flags().encode()])


def build_programs(layout: Layout, progress: Progress) -> Programs:
    """Return all programs, building those that the cache lacks."""
    compiler = go_version()
    return Programs(
        kube=_build_kube(layout, compiler, progress),
        coredns=build_tool(layout, COREDNS, compiler, progress),
        helm=build_tool(layout, HELM, compiler, progress),
    )


def build_tool(layout: Layout, tool: Tool, compiler: str, progress: Progress) -> Path:
    """Return a pinned program, building it when the cache lacks it."""
    wanted = layout.cache / "go" / f"{tool.name}-{tool.version}-{compiler}" / tool.name
    if wanted.exists():
        return wanted
    progress(f"building {tool.name} {tool.version} (about two minutes, once)")
    with scratch(layout.cache / "go") as folder:
        run_long(
            ["nice", "go", "install", "-trimpath", "-ldflags=-s -w", f"{tool.package}@{tool.version}"],
            layout.logs / f"build-{tool.name}.log",
            progress,
            f"building {tool.name}",
            env={**BUILD_ENVIRONMENT, "GOBIN": str(folder)},
        )
        return _publish(folder / tool.name, wanted)


def _build_kube(layout: Layout, compiler: str, progress: Progress) -> Path:
    wanted = layout.cache / "go" / f"kube-{kube_key(layout.go_module, compiler)}" / "kube"
    if wanted.exists():
        return wanted
    progress(f"building Kubernetes {KUBERNETES_VERSION} and etcd (about five minutes, once)")
    with scratch(layout.cache / "go") as folder:
        run_long(
            [
                "nice",
                "go",
                "build",
                "-trimpath",
                "-tags",
                TAGS,
                "-ldflags",
                _linker_flags(),
                "-o",
                folder / "kube",
                ".",
            ],
            layout.logs / "build-kube.log",
            progress,
            "building Kubernetes",
            env=BUILD_ENVIRONMENT,
            directory=layout.go_module,
        )
        return _publish(folder / "kube", wanted)


def _publish(built: Path, wanted: Path) -> Path:
    """Move a finished program to its place in one step: a killed build leaves nothing that looks finished."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    return built.replace(wanted)


def _linker_flags() -> str:
    major, minor, _ = KUBERNETES_VERSION.split(".")
    stamps = {
        "gitVersion": f"v{KUBERNETES_VERSION}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
    }
    flags = [
        f"-X {package}.{name}={value}"
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for name, value in stamps.items()
    ]
    return " ".join(["-s -w", *flags])
