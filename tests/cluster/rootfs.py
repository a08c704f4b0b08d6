"""Root file systems for images: Debian by debootstrap, `pause` by Go, each kept as a tar in the cache.

The mirror is the one that this machine's apt uses; it is looked up when needed and written down nowhere.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.build import BUILD_ENVIRONMENT, content_key
from tests.cluster.errors import ClusterError
from tests.cluster.layout import Layout
from tests.cluster.progress import Progress
from tests.cluster.shell import run, run_long, scratch

UNNEEDED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
)
"""Emptied in every image: a third of its size, and nothing that a program reads."""

JIT = (
    "usr/lib/x86_64-linux-gnu/libLLVM*",
    "usr/lib/x86_64-linux-gnu/libz3*",
    "usr/lib/postgresql/*/lib/llvmjit*",
    "usr/lib/postgresql/*/lib/bitcode",
)
"""PostgreSQL's optional compiler, half of its image; without these files the server goes on without it."""

POSTGRES_USER_ID = 999
"""The user id of the customary PostgreSQL images, which charts and volumes rely on."""

RECIPE_VERSION = "1"
"""Raised when the code below makes something else out of the same recipe."""


@dataclass(frozen=True)
class Recipe:
    """How a root file system is made, and how its image is run."""

    name: str
    tag: str
    suite: str = ""
    """The Debian release; empty for the static `pause`."""

    packages: tuple[str, ...] = ()
    configuration: tuple[str, ...] = field(default=())
    """Dockerfile instructions that the image carries."""

    postgres: int = 0
    """Major version of the PostgreSQL inside, 0 for none."""

    @property
    def reference(self) -> str:
        """The image's name; the host part keeps a runtime from reading it as Docker Hub's."""
        return f"localhost/{self.name}:{self.tag}"


def _postgres(version: int, suite: str) -> Recipe:
    return Recipe(
        name="flowstone-postgres",
        tag=str(version),
        suite=suite,
        packages=(f"postgresql-{version}",),
        postgres=version,
        configuration=(
            f"ENV PATH=/usr/lib/postgresql/{version}/bin:/usr/local/bin:/usr/bin:/bin",
            "ENV PGDATA=/var/lib/postgresql/data",
            "ENV LANG=C.UTF-8",
            f"USER {POSTGRES_USER_ID}:{POSTGRES_USER_ID}",
            "VOLUME /var/lib/postgresql/data",
            "EXPOSE 5432",
            "STOPSIGNAL SIGINT",  # a fast shutdown; SIGTERM waits for every client
            'ENTRYPOINT ["/usr/local/bin/postgres-entrypoint"]',
            'CMD ["postgres"]',
        ),
    )


PAUSE = Recipe("pause", "dev", configuration=("USER 65532:65532", 'ENTRYPOINT ["/pause"]'))
BASE = Recipe(
    "flowstone-base",
    "dev",
    "trixie",
    ("python3", "ca-certificates"),
    ("ENV LANG=C.UTF-8", "ENV PATH=/usr/local/bin:/usr/bin:/bin", 'CMD ["python3"]'),
)
RECIPES = (PAUSE, BASE, _postgres(17, "trixie"), _postgres(15, "bookworm"))


def recipe_key(recipe: Recipe, sources: Iterable[bytes]) -> str:
    """The cache key of a root file system: the recipe and the files that go into it."""
    return content_key([RECIPE_VERSION.encode(), repr(recipe).encode(), *sources])


def sources(recipe: Recipe, images: Path) -> list[bytes]:
    """The project's own files that go into a root file system."""
    folder = images / ("postgres" if recipe.postgres else recipe.name)
    return [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.is_dir() else []


def root_archive(recipe: Recipe, layout: Layout, progress: Progress) -> Path:
    """Return the tar of a root file system, making it when the cache lacks it."""
    images = layout.root / "tests" / "cluster" / "image_files"
    key = recipe_key(recipe, sources(recipe, images))
    wanted = layout.cache / "images" / f"{recipe.name}-{recipe.tag}-{key}.tar"
    if wanted.exists():
        return wanted
    progress(f"making {recipe.reference} (once)")
    with scratch(layout.cache / "images") as folder:
        root = folder / "root"
        root.mkdir()
        root.chmod(0o755)
        if recipe.suite:
            _bootstrap(recipe, root, images, layout, progress)
        else:
            _build_static(root, images / recipe.name)
        run(["tar", "--create", "--numeric-owner", "--file", folder / "root.tar", "--directory", root, "."])
        return (folder / "root.tar").replace(wanted)


def debian_mirror(targets: str) -> str:
    """Pick the mirror out of the lines `ORIGIN COMPONENT RELEASE URI` that apt knows its sources by.

    Raises:
        ClusterError: apt has no Debian source.
    """
    for line in targets.splitlines():
        component, release, uri = line.split()
        # Not the updates or the security archive: those have no complete release to start from.
        if component == "main" and re.fullmatch(r"[a-z]+", release) and "debian" in uri:
            return uri
    raise ClusterError("apt has no source with Debian's main archive, from which the images are made")


def _mirror() -> str:
    form = "$(COMPONENT) $(RELEASE) $(REPO_URI)"
    return debian_mirror(run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]))


def _bootstrap(recipe: Recipe, root: Path, images: Path, layout: Layout, progress: Progress) -> None:
    log = layout.logs / f"image-{recipe.name}-{recipe.tag}.log"
    include = f"--include={','.join(recipe.packages)}"
    command = ["nice", "debootstrap", "--variant=minbase", include, recipe.suite, str(root), _mirror()]
    run_long(command, log, progress, f"making {recipe.reference}")
    for name in UNNEEDED:
        _empty(root / name)
    for path in [path for pattern in JIT for path in root.glob(pattern)]:
        _delete(path)
    if recipe.postgres:
        _finish_postgres(recipe, root, images)


def _empty(folder: Path) -> None:
    for entry in folder.glob("*"):
        _delete(entry)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _finish_postgres(recipe: Recipe, root: Path, images: Path) -> None:
    """Drop the cluster that Debian's package makes, and give the server's user its customary id."""
    run(["chroot", root, "usermod", "--uid", str(POSTGRES_USER_ID), "postgres"])
    run(["chroot", root, "groupmod", "--gid", str(POSTGRES_USER_ID), "postgres"])
    home = root / "var/lib/postgresql"
    shutil.rmtree(home)
    shutil.rmtree(root / f"etc/postgresql/{recipe.postgres}", ignore_errors=True)
    for folder, mode in ((home, 0o755), (home / "data", 0o700), (root / "run/postgresql", 0o2775)):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.chown(folder, POSTGRES_USER_ID, POSTGRES_USER_ID)
        folder.chmod(mode)
    entrypoint = root / "usr/local/bin/postgres-entrypoint"
    shutil.copy(images / "postgres" / "entrypoint.sh", entrypoint)
    entrypoint.chmod(0o755)


def _build_static(root: Path, source: Path) -> None:
    program = source / "main.go"
    run(
        ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", root / "pause", program],
        env={**BUILD_ENVIRONMENT, "GO111MODULE": "off"},
    )
