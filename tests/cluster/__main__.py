"""Command line: `python -m tests.cluster up|down|status|load IMAGE...|images|wheels|image|leftovers`."""

import argparse
import sys

from tests.cluster.cleanup import leftovers
from tests.cluster.cluster import down, status, up
from tests.cluster.errors import ClusterError
from tests.cluster.flowstone_image import ensure_flowstone_image, prepare_context
from tests.cluster.images import ensure_base_images, load
from tests.cluster.layout import Layout, project_layout
from tests.cluster.packages import ensure_root
from tests.cluster.progress import Progress
from tests.cluster.shell import exclusive

WITHOUT_LOCK = ("status", "leftovers", "wheels")
"""Commands that change nothing on the cluster; `wheels` is also for users without one, and without root."""


def main() -> int:
    """Do what is asked; 0 when it worked."""
    arguments = _parser().parse_args()
    layout, progress = project_layout(), Progress()
    try:
        if arguments.command in WITHOUT_LOCK:
            return _run(arguments, layout, progress)
        ensure_root()
        with exclusive(layout.lock, progress):
            return _run(arguments, layout, progress)
    except ClusterError as failure:
        sys.stderr.write(f"error: {failure}\n")
        return 1


def _run(arguments: argparse.Namespace, layout: Layout, progress: Progress) -> int:
    match arguments.command:
        case "up":
            up(layout, progress)
        case "down":
            down(layout, progress, force=arguments.force)
        case "status":
            return 0 if status(layout, progress) else 1
        case "load":
            load(layout, arguments.images, progress)
        case "images":
            ensure_base_images(layout, progress)
        case "wheels":
            prepare_context(layout, progress)
        case "image":
            progress(f"ready: {ensure_flowstone_image(layout, progress)}")
        case "leftovers":
            lines = leftovers(layout).lines()
            sys.stdout.writelines(line + "\n" for line in lines)
            return 1 if lines else 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Kubernetes on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the cluster, or do nothing when it works")
    ending = commands.add_parser("down", help="end the cluster and leave nothing behind")
    ending.add_argument("--force", action="store_true", help="also when another checkout started it")
    commands.add_parser("status", help="show what runs; exit code 0 when the cluster works")
    loading = commands.add_parser("load", help="bring images from dockerd to the node")
    loading.add_argument("images", nargs="+", metavar="IMAGE", help="such as localhost/flowstone:dev")
    commands.add_parser("images", help="make the base, pause and PostgreSQL images and load them")
    commands.add_parser("wheels", help="unpack what the Dockerfile copies into build/image")
    commands.add_parser("image", help="build FlowStone's image and load it into the node")
    commands.add_parser("leftovers", help="show what a cluster has on this machine; exit code 0 when nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
