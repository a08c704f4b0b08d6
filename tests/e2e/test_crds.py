"""The CRDs on a real API server: it accepts the schemas, judges manifests as the models do, and keeps frozen fields.

Whatever only asks for an answer is a server-side dry run, so an operator that watches the cluster does not interfere.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy
from kubernetes import client, config

from flowstone.api.kinds import EXPORTED
from flowstone.api.parse import AssetResource, BackfillResource, parse_asset, parse_backfill
from flowstone.errors import InvalidSpec
from tests.e2e.kubectl import Json, Kubectl
from tests.unit.api.manifests import BAD, GOOD, POD, Case, asset, backfill, days, resource
from tests.unit.api.strategies import ASSETS, BACKFILLS

ROOT = Path(__file__).parents[2]
JSON = {"Accept": "application/json", "Content-Type": "application/json"}
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"

pytestmark = pytest.mark.cluster

PARSERS: dict[str, Callable[[Mapping[str, Any]], BackfillResource | AssetResource]] = {
    "Backfill": parse_backfill,
    "Asset": parse_asset,
}


@pytest.fixture(scope="module")
def kubectl(cluster: Kubectl) -> Iterator[Kubectl]:
    """kubectl in a namespace of its own, on a cluster that has the CRDs; an operator is not needed."""
    run = cluster.within(f"crds-{secrets.token_hex(4)}")
    made = [path for path in sorted((ROOT / "crds").glob("*.yaml")) if make_crd(run, path)]
    run.out("create", "namespace", run.namespace)
    yield run
    run.out("delete", "namespace", run.namespace, "--wait=false")
    for path in made:
        run.out("delete", "-f", str(path))


def make_crd(run: Kubectl, path: Path) -> bool:
    """Create the CRD of a file unless it is there, which is then used as it is; return whether it was created."""
    name = yaml.safe_load(path.read_text())["metadata"]["name"]
    created = not run.get("crd", name)
    if created:
        run.out("create", "-f", str(path))
    run.out("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
    return created


def asked(kubectl: Kubectl, manifest: Json, *flags: str) -> subprocess.CompletedProcess[str]:
    """What the server would say to a manifest."""
    return kubectl.run("apply", "--dry-run=server", *flags, "-f", "-", given=json.dumps(manifest))


def said(text: str) -> str:
    """What the server said, with paths written in one way: `a[b].c` as `a.b.c`."""
    return re.sub(r"\[([\w-]+)\]", r".\1", text)


def named(name: str, spec: Json, kind: str = "Backfill") -> Json:
    """A resource of this name."""
    return resource(Case(name, kind, spec))


@pytest.fixture
def created(kubectl: Kubectl) -> Iterator[Callable[[Json], Json]]:
    """Make resources that are deleted after the test; returns the manifest that was applied."""
    made: list[Json] = []

    def make(manifest: Json) -> Json:
        kubectl.apply(manifest)
        made.append(manifest)
        return manifest

    yield make
    for manifest in made:
        kubectl.out("delete", manifest["kind"], manifest["metadata"]["name"], "--wait=false")


def edited(manifest: Json, **fields: Any) -> Json:
    """The manifest with some fields of its spec set, or removed where they are None."""
    spec = manifest["spec"] | fields
    return manifest | {"spec": {key: value for key, value in spec.items() if value is not None}}


def test_cluster_has_the_schemas_of_this_tree(kubectl: Kubectl) -> None:
    """The schemas that the server holds are those of crds/, so the other tests speak of them."""
    for kind in EXPORTED:
        path = ROOT / "crds" / f"flowstone.dev_{kind.plural}.yaml"
        ours = yaml.safe_load(path.read_text())["spec"]["versions"]
        theirs = kubectl.get("crd", kind.crd_name)["spec"]["versions"]
        assert [version["schema"] for version in theirs] == [version["schema"] for version in ours]


def test_cluster_found_no_fault_in_the_schemas(kubectl: Kubectl) -> None:
    """The server holds the schemas for structural, and accepted the names and short names."""
    for kind in EXPORTED:
        conditions = kubectl.get("crd", kind.crd_name)["status"]["conditions"]
        states = {condition["type"]: condition["status"] for condition in conditions}
        assert states["Established"] == "True"
        assert states["NamesAccepted"] == "True"
        assert states.get("NonStructuralSchema", "False") == "False"


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_good_manifest_is_accepted(kubectl: Kubectl, case: Case) -> None:
    """What the models accept, the server accepts."""
    answer = asked(kubectl, resource(case))
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_bad_manifest_is_refused_by_field_value_and_remedy(kubectl: Kubectl, case: Case) -> None:
    """What the models refuse, the server refuses, naming field, value and remedy."""
    answer = asked(kubectl, resource(case))
    assert answer.returncode != 0
    text = said(answer.stderr)
    assert [piece for piece in (case.field, *case.says) if piece not in text] == []


@pytest.mark.parametrize("kind", ["Backfill", "Asset"])
def test_name_over_63_characters_is_refused(kubectl: Kubectl, kind: str) -> None:
    """A name that its Jobs could not carry as a label is refused; one of 63 characters is accepted."""
    spec = backfill() if kind == "Backfill" else asset()
    assert asked(kubectl, named("a" * 63, spec, kind)).returncode == 0
    refused = asked(kubectl, named("a" * 64, spec, kind))
    assert refused.returncode != 0
    assert "metadata.name" in refused.stderr
    assert "a" * 64 in refused.stderr
    assert "use at most 63" in refused.stderr


def test_long_asset_name_is_fine_with_an_id(kubectl: Kubectl) -> None:
    """An Asset's own name may be longer than an id when it has an id."""
    assert asked(kubectl, named("a" * 64, asset(id="daily"), "Asset")).returncode == 0


def test_defaults_are_filled_in(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """The server fills in the design's defaults, and a fresh status is unobserved."""
    created(named("defaults", backfill()))
    found = kubectl.get("backfill", "defaults")
    assert found["spec"] == {
        "asset": "daily",
        "select": "Missing",
        "order": "Ascending",
        "maxParallel": 10,
        "targetBatchSeconds": 60,
        "retry": {"limit": 2, "backoffSeconds": 10, "maxBackoffSeconds": 600},
        "cancel": False,
        "readyWhen": "Accepted",
    }
    answer = asked(kubectl, named("new", backfill()), "-o", "json")
    assert json.loads(answer.stdout)["status"] == {"observedGeneration": -1}


FROZEN_EDITS = {
    "asset": ("other", "daily"),
    "partitions": ({"day": {"from": "2013-01-01", "through": "2013-12-30"}}, "create another Backfill"),
    "partitions-removed": (None, "create another Backfill"),
    "excludeCombinations": ([{"day": "2013-01-01"}], "create another Backfill"),
    "select": ("All", "Missing"),
}


@pytest.mark.parametrize("edit", FROZEN_EDITS)
def test_frozen_field_keeps_its_value(kubectl: Kubectl, created: Callable[[Json], Json], edit: str) -> None:
    """A field that says what is asked for cannot be changed, added or removed; the answer says what to do."""
    manifest = created(named("frozen", days(**{"from": "2013-01-01", "through": "2013-12-31"})))
    field = edit.removesuffix("-removed")
    value, says = FROZEN_EDITS[edit]
    answer = asked(kubectl, edited(manifest, **{field: value}))
    assert answer.returncode != 0
    assert f"spec.{field}" in answer.stderr
    assert "cannot be changed" in answer.stderr
    assert says in answer.stderr


def test_keys_are_frozen_too(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """Keys cannot be changed, removed, or put in the place of partitions."""
    manifest = created(named("keys", backfill(keys=["2013-01-01", "2013-01-02"])))
    moved = edited(manifest, keys=None, partitions={"day": {"values": ["2013-01-01", "2013-01-02"]}})
    for other in (edited(manifest, keys=["2013-01-01"]), edited(manifest, keys=None), moved):
        answer = asked(kubectl, other)
        assert answer.returncode != 0
        assert "keys cannot be changed, added or removed: create another Backfill" in answer.stderr


def test_live_fields_may_change(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """How fast and how patiently may be edited at any time."""
    manifest = created(named("live", backfill()))
    retry = {"limit": 0, "backoffSeconds": 1, "maxBackoffSeconds": 2}
    live: Json = {"maxParallel": 3, "batchSize": 7, "order": "Descending", "retry": retry, "readyWhen": "Finished"}
    live |= {"targetBatchSeconds": 5, "suspend": "Drain", "resume": "a", "retryFailed": "b"}
    live |= {"failureBudget": {"count": 3}}
    answer = asked(kubectl, edited(manifest, cancel=True, **live))
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("value", [False, None])
def test_cancel_is_one_way(kubectl: Kubectl, created: Callable[[Json], Json], value: bool | None) -> None:
    """A cancelled Backfill cannot be called back, neither by false nor by leaving the field out."""
    manifest = created(named("cancelled", backfill(cancel=True)))
    answer = asked(kubectl, edited(manifest, cancel=value))
    assert answer.returncode != 0
    assert "spec.cancel" in answer.stderr
    assert "create another Backfill" in answer.stderr


DAY: Json = {"name": "day", "type": "date", "timezone": "Europe/Berlin"}
REGION: Json = {"name": "region", "type": "string", "values": ["eu", "us"]}

DIMENSION_EDITS: dict[str, tuple[Json, ...]] = {
    "type": (DAY | {"type": "datetime"}, REGION),
    "timezone": (DAY | {"timezone": "UTC"}, REGION),
    "timezone-removed": ({"name": "day", "type": "date"}, REGION),
    "unit-added": (DAY | {"unit": "week"}, REGION),
    "order": (REGION, DAY),
    "removed": (DAY,),
    "added": (DAY, REGION, {"name": "more", "type": "string"}),
    "renamed": (DAY | {"name": "date"}, REGION),
}


@pytest.mark.parametrize("edit", DIMENSION_EDITS)
def test_dimensions_keep_their_shape(kubectl: Kubectl, created: Callable[[Json], Json], edit: str) -> None:
    """Names, types, units, zones and order of an Asset's dimensions never change."""
    created(named("daily", asset(DAY, REGION), "Asset"))
    answer = asked(kubectl, named("daily", asset(*DIMENSION_EDITS[edit]), "Asset"))
    assert answer.returncode != 0
    assert "spec.partitionedBy" in answer.stderr
    assert "create another Asset" in answer.stderr


def test_asset_id_never_changes(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """An id can be neither changed, nor added, nor removed."""
    created(named("with-id", asset(id="one"), "Asset"))
    created(named("without-id", asset(), "Asset"))
    edits = [("with-id", asset(id="two")), ("with-id", asset()), ("without-id", asset(id="one"))]
    for name, spec in edits:
        answer = asked(kubectl, named(name, spec, "Asset"))
        assert answer.returncode != 0
        assert "spec.id" in answer.stderr
        assert "create another Asset" in answer.stderr


def test_declared_values_and_template_are_live(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """Declared values and the template may be edited, also from a list to a range."""
    created(named("daily", asset(DAY | {"values": ["2013-01-01"]}, REGION), "Asset"))
    ranged = DAY | {"range": {"from": "2013-01-01", "through": "2013-12-31"}}
    other = {"spec": {"containers": [{"name": "main", "image": "localhost/flights:2"}]}}
    answer = asked(kubectl, named("daily", asset(ranged, REGION | {"values": ["eu"]}, template=other), "Asset"))
    assert (answer.returncode, answer.stderr) == (0, "")


def test_template_keeps_every_field(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """The pod template is stored as it was written, whatever it holds."""
    containers = [POD["spec"]["containers"][0] | {"resources": {"limits": {"cpu": "1"}}}]
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers, "nodeSelector": {"c": "d"}}}
    created(named("daily", asset(template=template), "Asset"))
    assert kubectl.get("asset", "daily")["spec"]["template"] == template


def test_second_apply_changes_nothing(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """The same manifest applied again leaves the generation alone."""
    spec = days(
        **{"from": "2013-01-01", "through": "2013-12-31"},
        exclude={"values": ["2013-02-09"], "ranges": [{"from": "2013-05-01", "before": "2013-06-01"}]},
    )
    manifest = created(named("again", spec))
    before = kubectl.get("backfill", "again")["metadata"]
    assert "unchanged" in kubectl.apply(manifest)
    after = kubectl.get("backfill", "again")["metadata"]
    assert (after["uid"], after["generation"]) == (before["uid"], 1)


def test_ten_thousand_keys_fit(kubectl: Kubectl) -> None:
    """As many keys as the schema allows are within what rules may cost at run time."""
    manifest = named("many", backfill(keys=[f"{number:05}" for number in range(10_000)]))
    answer = asked(kubectl, manifest, "--server-side")
    assert (answer.returncode, answer.stderr) == (0, "")


def test_thousand_excluded_ranges_fit(kubectl: Kubectl) -> None:
    """As many excluded ranges as the schema allows are within what rules may cost at run time."""
    ranges = [{"from": f"{year:04}-02-28", "through": f"{year:04}-03-01"} for year in range(1001, 2001)]
    every = {"from": "1001-01-01", "through": "2000-12-31", "exclude": {"ranges": ranges}}
    manifest = named("many", backfill(partitions={f"d{number}": every for number in range(8)}))
    answer = asked(kubectl, manifest, "--server-side")
    assert (answer.returncode, answer.stderr) == (0, "")


def test_short_names_and_category(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """`kubectl get bf`, `get ast` and `get flowstone` find them."""
    created(named("short", backfill()))
    created(named("short", asset(), "Asset"))
    assert kubectl.out("get", "bf", "-o", "name").split() == ["backfill.flowstone.dev/short"]
    assert kubectl.out("get", "ast", "-o", "name").split() == ["asset.flowstone.dev/short"]
    found = kubectl.out("get", "flowstone", "-o", "name").split()
    both = [one for one in found if not one.startswith("tenant.")]  # those are the whole cluster's
    assert sorted(both) == ["asset.flowstone.dev/short", "backfill.flowstone.dev/short"]


def test_columns_show_how_far_it_is(kubectl: Kubectl, created: Callable[[Json], Json]) -> None:
    """`kubectl get backfills` shows phase and its reason, total, succeeded, failed, progress and age."""
    created(named("columns", backfill()))
    assert kubectl.out("get", "backfills").splitlines()[0].split() == [
        "NAME",
        "PHASE",
        "REASON",
        "TOTAL",
        "SUCCEEDED",
        "FAILED",
        "PROGRESS",
        "AGE",
    ]
    ready = {"type": "Ready", "status": "False", "reason": "QuotaExceeded", "message": "", "observedGeneration": 1}
    status = {
        "phase": "Blocked",
        "conditions": [ready | {"lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "counts": {"total": 365, "succeeded": 362, "failed": 3},
        "progress": 100,
    }
    assert status_row(kubectl, "columns", status)[:7] == ["columns", "Blocked", "QuotaExceeded", 365, 362, 3, 100]


def status_row(kubectl: Kubectl, name: str, status: Json) -> list[Any]:
    """The row that the server would print for this status: a dry run, for an operator may write its own meanwhile."""
    with config.new_client_from_config(kubectl.config) as api:
        path = f"{collection(kubectl, 'Backfill')}/{name}/status"
        headers = {"Accept": TABLE, "Content-Type": "application/merge-patch+json"}
        code, table = dry_run(api, "PATCH", path, headers, {"status": status})
    assert code == 200, table
    cells: list[Any] = table["rows"][0]["cells"]
    return cells


def collection(kubectl: Kubectl, kind: str) -> str:
    """Path of all resources of a kind in the namespace."""
    return f"/apis/flowstone.dev/v1alpha1/namespaces/{kubectl.namespace}/{kind.lower()}s"


def dry_run(api: client.ApiClient, method: str, path: str, headers: Mapping[str, str], body: Json) -> tuple[int, Json]:
    """What the server would answer: the HTTP status and the body."""
    query = [("dryRun", "All"), ("fieldValidation", "Strict")]
    request = api.param_serialize(
        method, path, query_params=query, header_params=dict(headers), body=body, auth_settings=["BearerToken"]
    )
    answer = api.call_api(*request)
    return answer.status, json.loads(answer.read())


def model_accepts(kind: str, spec: Json) -> bool:
    """Whether the model takes the spec."""
    try:
        PARSERS[kind]({"metadata": {"name": "any"}, "spec": spec})
    except InvalidSpec:
        return False
    return True


@pytest.mark.parametrize(("kind", "specs"), [("Backfill", BACKFILLS), ("Asset", ASSETS)])
def test_server_and_models_agree(kubectl: Kubectl, kind: str, specs: SearchStrategy[Json]) -> None:
    """Of any spec, server and model say the same: what one refuses, the other refuses."""
    verdicts: Counter[bool] = Counter()
    with config.new_client_from_config(kubectl.config) as api:

        @settings(max_examples=200, deadline=None, database=None)
        @given(specs)
        def agree(spec: Json) -> None:
            code, answer = dry_run(api, "POST", collection(kubectl, kind), JSON, named("any", spec, kind))
            accepted = model_accepts(kind, spec)
            assert (code == 201) == accepted, answer.get("message")
            verdicts[accepted] += 1

        agree()
    assert min(verdicts[True], verdicts[False]) >= 10, verdicts
