"""Assets as the reconcile needs them: read, and their template tried out once per version."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowstone.api.parse import AssetResource, parse_asset
from flowstone.api.partitions import declared, described
from flowstone.backfill.records import ClaimedBatch
from flowstone.errors import InvalidSpec, KubernetesRefused
from flowstone.executor.jobs import Work, job_manifest
from flowstone.executor.template import check_template, template_digest
from flowstone.kube.client import Json, Kube
from flowstone.kube.paths import custom, jobs
from flowstone.settings import OperatorSettings

REMEMBERED = 1000
"""Templates that are remembered as accepted; older ones are tried out again."""

REFUSED_SECONDS = 60.0
"""How long a refusal is believed: each of an Asset's backfills asks every few seconds, and a trial is a write."""

FRESH_SECONDS = 2.0
"""How long an Asset that was read is taken for what it is; its own events replace it at once."""

ASSET = "Asset."
"""Before the name of a field of an Asset."""


class Assets:
    """Reads Assets and checks their pod templates."""

    def __init__(self, kube: Kube, settings: OperatorSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._settings = settings
        self._clock = clock
        self._refused: dict[tuple[str, str], tuple[float, str]] = {}  # until when, and why
        self._accepted: dict[tuple[str, str], None] = {}  # a set that remembers the order
        self._fresh: dict[tuple[str, str], tuple[float, AssetResource]] = {}  # until when

    async def find(self, namespace: str, name: str) -> AssetResource | None:
        """The Asset, or None when there is none; as it was at most `FRESH_SECONDS` ago.

        Raises:
            InvalidSpec: The Asset itself makes no sense.
        """
        until, asset = self._fresh.get((namespace, name), (0.0, None))
        if asset is not None and self._clock() < until:
            return asset
        resource = await self._kube.get(custom("assets", namespace, name))
        if resource is None:
            self.forget(namespace, name)
            return None
        return self.read(resource)

    def forget(self, namespace: str, name: str) -> None:
        """Note that there is no such Asset any more."""
        self._fresh.pop((namespace, name), None)

    def read(self, resource: Json) -> AssetResource:
        """The Asset that a resource describes; one that its status calls ready needs no dry run again.

        Raises:
            InvalidSpec: The Asset itself makes no sense.
        """
        name = (resource["metadata"]["namespace"], resource["metadata"]["name"])
        self.forget(*name)
        with _called_the_assets():
            asset = parse_asset(resource)
        if is_ready(resource):
            self._accept(asset)
        self._fresh[name] = (self._clock() + FRESH_SECONDS, asset)
        return asset

    async def check(self, asset: AssetResource) -> None:
        """Check dimensions and template, the latter with the API server's own validation.

        Raises:
            InvalidSpec: Names the field of the template, its value and the remedy.
        """
        with _called_the_assets():
            declared(asset.spec)
            check_template(asset.spec.template, service_accounts=self._settings.service_accounts, tenant_secrets=())
        known = (asset.namespace, template_digest(asset.spec.template))
        if known in self._accepted:
            return
        refusal = self._recent_refusal(known) or await self._dry_run(asset)
        if refusal:
            self._refused.setdefault(known, (self._clock() + REFUSED_SECONDS, refusal))
            raise InvalidSpec("Asset.spec.template", asset.name, refusal)
        self._accept(asset)

    def _recent_refusal(self, known: tuple[str, str]) -> str:
        now = self._clock()
        self._refused = {key: one for key, one in self._refused.items() if one[0] > now}
        return self._refused[known][1] if known in self._refused else ""

    def _accept(self, asset: AssetResource) -> None:
        self._accepted[asset.namespace, template_digest(asset.spec.template)] = None
        if len(self._accepted) > REMEMBERED:
            del self._accepted[next(iter(self._accepted))]

    async def _dry_run(self, asset: AssetResource) -> str:
        """Why the API server would refuse such a Job; "" when it would not."""
        try:
            await self._kube.create(jobs(asset.namespace), _sample(asset), dry_run=True)
        except KubernetesRefused as refused:
            if refused.status in (400, 422):
                return f"the API server refuses this pod template: {refused.message}"
            if refused.status == 403 and "quota" not in refused.message:
                raise
        return ""


@contextmanager
def _called_the_assets() -> Iterator[None]:
    """Call a field the Asset's: the message is read in the status of a Backfill, which has a spec too."""
    try:
        yield
    except InvalidSpec as error:
        field = error.field if error.field.startswith(ASSET) else ASSET + error.field
        raise InvalidSpec(field, error.value, error.remedy) from error


def is_ready(resource: Json) -> bool:
    """Whether the Asset's status calls its present generation ready."""
    status = resource.get("status") or {}
    current = status.get("observedGeneration") == resource["metadata"].get("generation")
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in status.get("conditions") or [])
    return current and ready


def _sample(asset: AssetResource) -> Json:
    """A Job such as a batch would get, to be validated and thrown away."""
    batch = ClaimedBatch(0, "n/dry/run", "flowstone-dry-run", ("2000-01-01",), "dry-run")
    work = work_of(asset, backfill="dry-run", uid="00000000-0000-0000-0000-000000000000", identity="dry/run/asset")
    return job_manifest(batch, work, secret="flowstone-ledger")  # noqa: S106 - a Secret's name


def work_of(asset: AssetResource, *, backfill: str, uid: str, identity: str) -> Work:
    """What all batches of one backfill over this asset have in common."""
    return Work(
        backfill=backfill,
        uid=uid,
        namespace=asset.namespace,
        asset_id=asset.id,
        asset=identity,
        dimensions=described(asset.spec),
        template=asset.spec.template,
    )
