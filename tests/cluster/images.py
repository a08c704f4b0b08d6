"""The two image stores: dockerd's, where images are built, and the node's, where pods find them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.cluster.errors import ClusterError, CommandError
from tests.cluster.layout import Layout
from tests.cluster.packages import find
from tests.cluster.processes import wait_until
from tests.cluster.progress import Progress
from tests.cluster.rootfs import RECIPES, Recipe, root_archive
from tests.cluster.shell import run, run_pipe, scratch
from tests.cluster.transfer import UnknownStoreError, write_archive

IMAGE = "localhost/flowstone"
"""FlowStone's own image; made by flowstone_image.py."""

DOCKER_API = "1.41"
"""What Debian 12's dockerd speaks; a newer client must be told."""

MANAGED = "io.cri-containerd.image"
"""The label by which the kubelet's runtime says that it has taken note of a reference."""

KEPT = 3
"""Contents of FlowStone's image that a new cluster keeps; a return to one of them needs no build."""

LOAD_SECONDS = 20.0
"""Until the kubelet's runtime knows an image that containerd has; normally milliseconds."""

KUBERNETES_NAMESPACE = "k8s.io"
"""containerd keeps the kubelet's images apart from dockerd's containers under this name."""


def docker_environment(layout: Layout) -> dict[str, str]:
    """What a Docker client needs in its environment to use this cluster's dockerd."""
    return {
        "DOCKER_HOST": f"unix://{layout.docker_socket}",
        "DOCKER_API_VERSION": DOCKER_API,
        "DOCKER_BUILDKIT": "0",
    }


def docker(layout: Layout, *arguments: str | Path, text: str | None = None) -> str:
    """Call the Docker client, with a text as its input."""
    return run(["docker", *arguments], env=docker_environment(layout), text=text)


def docker_with_input(layout: Layout, archive: Path, *arguments: str | Path) -> None:
    """Call the Docker client with a file as its input."""
    run_pipe(["cat", archive], ["docker", *arguments], env=docker_environment(layout))


def docker_id(layout: Layout, reference: str) -> str | None:
    """The id of an image in dockerd, `sha256:...`; None when there is no such image."""
    try:
        return docker(layout, "image", "inspect", "--format", "{{.Id}}", reference).strip()
    except CommandError:
        return None


def node_images(layout: Layout) -> dict[str, str]:
    """The node's images: reference -> digest of the manifest that it points to."""
    return parse_node_images(run([*_ctr(layout), "images", "list"]))


def parse_node_images(table: str) -> dict[str, str]:
    """Read the table that `ctr images list` prints: reference, type, digest, and more; labels at the end.

    A reference that the kubelet's runtime has not taken note of yet counts as absent: pods would not get it.
    """
    rows = [line.split() for line in table.splitlines() if f"{MANAGED}=managed" in line]
    return {row[0]: row[2] for row in rows}


def node_has(images: Mapping[str, str], reference: str, image_id: str) -> bool:
    """Whether the node knows an image under its name with exactly this content.

    The kubelet's runtime keeps a second reference for every image, named by its id; when both point to the same
    manifest, the name stands for that id.
    """
    return reference in images and images[reference] == images.get(image_id)


def load(layout: Layout, references: Iterable[str], progress: Progress) -> None:
    """Bring images from dockerd to the node, those that it does not have yet.

    Raises:
        ClusterError: dockerd has no such image, or the node does not take it.
    """
    present = node_images(layout)
    wanted = {reference: _existing_id(layout, reference) for reference in references}
    missing = [name for name, image_id in wanted.items() if not node_has(present, name, image_id)]
    if not missing:
        return
    progress(f"loading into the node: {', '.join(missing)}")
    _transfer(layout, {name: wanted[name] for name in missing})
    wait_until(
        lambda: all(node_has(node_images(layout), name, wanted[name]) for name in missing),
        LOAD_SECONDS,
        f"the node did not take {', '.join(missing)}",
        layout.logs / "containerd.log",
    )


def ensure_base_images(layout: Layout, progress: Progress) -> None:
    """Have every image of our own recipes in dockerd and on the node."""
    for recipe in RECIPES:
        _ensure_in_docker(layout, recipe, root_archive(recipe, layout, progress), progress)
    load(layout, [recipe.reference for recipe in RECIPES], progress)


def _transfer(layout: Layout, images: Mapping[str, str]) -> None:
    receive = [*_ctr(layout), "images", "import"]
    present = frozenset(run([*_ctr(layout), "content", "list", "--quiet"]).split())
    with scratch(layout.cache / "images") as folder:
        archive = folder / "images.tar"
        try:
            write_archive(layout.docker_store, images, present, archive)
        except UnknownStoreError:
            run_pipe(["docker", "save", *images], [*receive, "-"], env=docker_environment(layout))
        else:
            run([*receive, archive])
    _announce(layout, images)


def _announce(layout: Layout, names: Iterable[str]) -> None:
    """Let the kubelet's runtime look at names anew: one that it manages already it does not follow."""
    for name in names:
        run([*_ctr(layout), "images", "label", name, f"{MANAGED}="])


def discard_containers(layout: Layout) -> None:
    """Remove the containers and volumes of an earlier cluster that dockerd still has on record."""
    if docker(layout, "container", "list", "--all", "--quiet").strip():
        docker(layout, "container", "prune", "--force")
    docker(layout, "volume", "prune", "--force")


def discard_images(layout: Layout) -> None:
    """Remove what no name stands for any more, and the older contents of images that are tagged by content.

    Only a new cluster does so: no pod runs from them yet.
    """
    for repository in (f"{IMAGE}-dependencies", IMAGE):
        tags = docker(layout, "image", "list", "--format", "{{.Tag}}", repository).split()
        for tag in superseded(tags):
            docker(layout, "image", "rm", f"{repository}:{tag}")
    docker(layout, "image", "prune", "--force")
    known = docker(layout, "image", "list", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").split()
    unknown = [name for name in node_images(layout) if name not in known]
    if unknown:
        run([*_ctr(layout), "images", "remove", *unknown])


def superseded(tags: Iterable[str]) -> list[str]:
    """Which of an image's tags can go, given from the newest to the oldest: all but `dev` and the first few."""
    return [tag for tag in tags if tag != "dev"][KEPT:]


def prepare_archives(layout: Layout, progress: Progress) -> None:
    """Make the root file systems, which takes long but needs no running cluster."""
    for recipe in RECIPES:
        root_archive(recipe, layout, progress)


def _ensure_in_docker(layout: Layout, recipe: Recipe, archive: Path, progress: Progress) -> None:
    # The second tag is named like the archive, so it tells which content the first one stands for.
    fixed = f"localhost/{recipe.name}:{archive.stem.rpartition('-')[2]}"
    image_id = docker_id(layout, fixed)
    if image_id is None:
        progress(f"importing {recipe.reference} into dockerd")
        root = docker(layout, "import", archive).strip()
        # By a build, because the import itself does not take every instruction.
        docker(layout, "build", "--tag", fixed, "-", text="\n".join([f"FROM {root}", *recipe.configuration]))
    if docker_id(layout, recipe.reference) != docker_id(layout, fixed):
        docker(layout, "tag", fixed, recipe.reference)


def _existing_id(layout: Layout, reference: str) -> str:
    image_id = docker_id(layout, reference)
    if image_id is None:
        raise ClusterError(f"dockerd has no image {reference}: build it, or pull it into {layout.docker_socket} first")
    return image_id


def _ctr(layout: Layout) -> list[str]:
    return [find("ctr") or "ctr", "--address", str(layout.containerd_socket), "--namespace", KUBERNETES_NAMESPACE]
