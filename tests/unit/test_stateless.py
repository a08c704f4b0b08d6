"""Kopf keeps nothing on the objects and compares nothing."""

from __future__ import annotations

import kopf

from flowstone.handlers import watch


def test_kopf_sees_no_differences_and_stores_nothing() -> None:
    """With the operator's settings a changed object looks like the one before, and the patch stays empty."""
    kept = watch.settings().persistence
    before, after = (kopf.Body({"metadata": {"name": name}}) for name in ("before", "after"))
    essences = [kept.diffbase_storage.build(body=one) for one in (before, after)]
    assert essences[0] == essences[1] == kept.progress_storage.clear(essence=essences[0])
    patch = kopf.Patch()
    kept.diffbase_storage.store(body=after, patch=patch, essence=essences[1])
    kept.progress_storage.touch(body=after, patch=patch, value="now")
    assert (dict(patch), kept.diffbase_storage.fetch(body=after)) == ({}, None)
