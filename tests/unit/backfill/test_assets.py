"""What is said of an Asset that makes no sense, to a reader who looks at a Backfill."""

from __future__ import annotations

import pytest
from kubernetes.aio import client

from flowstone.backfill.edges.assets import Assets
from flowstone.errors import InvalidSpec
from flowstone.kube.client import Json, Kube
from flowstone.settings import OperatorSettings

CONTAINER: Json = {"name": "main", "image": "localhost/worker:1"}
DAYS: Json = {"name": "day", "type": "date"}


def resource(dimension: Json, pod: Json) -> Json:
    """An Asset as the API server would hand it out."""
    spec = {"partitionedBy": [dimension], "template": {"spec": {"containers": [CONTAINER], **pod}}}
    return {"metadata": {"name": "days", "namespace": "ns", "uid": "u", "generation": 1}, "spec": spec}


@pytest.mark.parametrize(
    ("asset", "field"),
    [
        (resource({"name": "day", "type": "dat"}, {}), "Asset.spec.partitionedBy.0.type"),
        (
            resource(DAYS, {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            "Asset.spec.template.spec.volumes[0].hostPath",
        ),
    ],
    ids=["no such type", "a folder of the node"],
)
async def test_a_field_of_an_asset_is_called_the_assets(asset: Json, field: str) -> None:
    """A Backfill has a `spec` too, so the message in its status says that the field is the Asset's."""
    async with client.ApiClient(client.Configuration(host="http://127.0.0.1:1")) as nowhere:
        assets = Assets(Kube(nowhere, count=lambda verb, status: None), OperatorSettings())
        with pytest.raises(InvalidSpec) as refused:
            await assets.check(assets.read(asset))
    assert refused.value.field == field
