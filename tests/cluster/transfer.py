"""Brings an image from dockerd to the node by its missing layers alone.

`docker save` always writes the whole image, and the node then reads all of it: many seconds for a changed line of
code. dockerd keeps of every layer the files and, in `tar-split.json.gz`, all the bytes between them, from which the
layer's tar is put together again exactly (the format is that of github.com/vbatts/tar-split). Its digest is known
beforehand, so a mistake here, or another format, is noticed and never loaded.
"""

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"

NAME_ANNOTATION = "io.containerd.image.name"
"""Tells containerd under which full name it shall keep an imported image."""

CHUNK = 1 << 20


class UnknownStoreError(Exception):
    """dockerd's store is not laid out as expected; the whole image has to be saved instead."""


def write_archive(store: Path, images: Mapping[str, str], present: frozenset[str], target: Path) -> None:
    """Write an OCI archive of images without the layers that the receiver has.

    Args:
        store: dockerd's data folder, with the overlay2 driver.
        images: reference -> image id.
        present: digests of the contents that the receiver has.
        target: the tar to write.

    Raises:
        UnknownStoreError: the store is not as expected.
    """
    try:
        with tarfile.open(target, "w") as archive:
            _write(archive, store, images, set(present), target.parent)
    except (OSError, LookupError, ValueError) as failure:
        raise UnknownStoreError(str(failure)) from failure


def chain_ids(layers: Sequence[str]) -> list[str]:
    """The names of the layers' stacks: each is the digest of the stack below and the layer (OCI image spec)."""
    chain: list[str] = []
    for layer in layers:
        chain.append(digest_of(f"{chain[-1]} {layer}".encode()) if chain else layer)
    return chain


def digest_of(data: bytes) -> str:
    """A content's address."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer_tar(split: Iterable[bytes], files: Path) -> Iterator[bytes]:
    """Put a layer's tar together again.

    Args:
        split: one JSON object per line: type 2 carries bytes as they are, type 1 names a file whose content follows.
        files: the folder with the layer's files.
    """
    for line in split:
        entry = json.loads(line)
        if entry["type"] == 2:
            yield base64.b64decode(entry["payload"])
        elif entry.get("size"):
            yield from _content(files / entry["name"], entry["size"])


def _content(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while size > 0:
            chunk = file.read(min(CHUNK, size))
            if not chunk:
                raise ValueError(f"{path} is shorter than the layer says")
            size -= len(chunk)
            yield chunk


def _write(archive: tarfile.TarFile, store: Path, images: Mapping[str, str], present: set[str], scratch: Path) -> None:
    manifests = []
    for reference, image_id in images.items():
        config = (store / "image/overlay2/imagedb/content" / image_id.replace(":", "/")).read_bytes()
        manifest = _add_image(archive, store, config, present, scratch)
        manifests.append({**_add_blob(archive, manifest, MANIFEST_TYPE), "annotations": {NAME_ANNOTATION: reference}})
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
    _add(archive, "index.json", _json(index))
    _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))


def _add_image(archive: tarfile.TarFile, store: Path, config: bytes, present: set[str], scratch: Path) -> bytes:
    """Add an image's configuration and missing layers; returns its manifest."""
    layers = json.loads(config)["rootfs"]["diff_ids"]
    descriptors = []
    for digest, chain in zip(layers, chain_ids(layers), strict=True):
        folder = store / "image/overlay2/layerdb" / chain.replace(":", "/")
        descriptors.append(_add_layer(archive, store, folder, digest, digest in present, scratch))
        present.add(digest)  # two images of one archive may share it
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _add_blob(archive, config, CONFIG_TYPE),
        "layers": descriptors,
    }
    return _json(manifest)


def _add_layer(
    archive: tarfile.TarFile, store: Path, folder: Path, digest: str, skip: bool, scratch: Path
) -> dict[str, Any]:
    files = store / "overlay2" / (folder / "cache-id").read_text().strip() / "diff"
    with gzip.open(folder / "tar-split.json.gz") as split:
        if skip:
            return _descriptor(LAYER_TYPE, digest, _tar_size(split))
        whole = scratch / "layer.tar"
        found = hashlib.sha256()
        with whole.open("wb") as output:
            for chunk in layer_tar(split, files):
                found.update(chunk)
                output.write(chunk)
    if digest != f"sha256:{found.hexdigest()}":
        raise ValueError(f"layer {digest} was put together wrongly")
    archive.add(whole, _blob_path(digest))
    return _descriptor(LAYER_TYPE, digest, whole.stat().st_size)


def _tar_size(split: Iterable[bytes]) -> int:
    entries = (json.loads(line) for line in split)
    return sum(len(base64.b64decode(e["payload"])) if e["type"] == 2 else e.get("size", 0) for e in entries)


def _add_blob(archive: tarfile.TarFile, data: bytes, media_type: str) -> dict[str, Any]:
    digest = digest_of(data)
    _add(archive, _blob_path(digest), data)
    return _descriptor(media_type, digest, len(data))


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _blob_path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
