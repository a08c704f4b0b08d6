"""Which tenants may have which partitions, and whose row a partition is."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.api.parse import AssetResource, BackfillResource, parse_asset, parse_backfill
from flowstone.backfill.plan import check_tenant, make_plan, require_known, tenant_of, wanted_tenants
from flowstone.backfill.records import Counts, Skipped
from flowstone.backfill.standing import Stand, judge
from flowstone.backfill.tenancy import KnownTenant, admit, misplaced, places_of
from flowstone.errors import InvalidSpec, TenantUnknown
from flowstone.guard import Guards, TierGuard
from flowstone.tenant.names import tenant_of_scope

TEMPLATE = {"spec": {"containers": [{"name": "c", "image": "i"}]}}
DAY = {"name": "day", "type": "date"}
AIRLINE = {"name": "airline", "type": "tenant"}
GUARDS = Guards((("tier", TierGuard()),))
DAYS = {"day": {"from": "2025-01-01", "through": "2025-01-02"}}


def asset(*dimensions: dict[str, Any], **spec: Any) -> AssetResource:
    """An Asset in namespace ns."""
    whole = {"partitionedBy": list(dimensions), "template": TEMPLATE, **spec}
    return parse_asset({"metadata": {"name": "delays", "namespace": "ns"}, "spec": whole})


def backfill(**spec: Any) -> BackfillResource:
    """A Backfill in namespace ns."""
    return parse_backfill(
        {"metadata": {"name": "b", "namespace": "ns", "uid": "u"}, "spec": {"asset": "delays", **spec}}
    )


def tenant(name: str, tier: str = "basic", *, namespaces: tuple[str, ...] = ("ns",), unready: str = "") -> KnownTenant:
    """A Tenant with a limit of 3 batches."""
    return KnownTenant(name, tier, f"t/c/{name}", f"flowstone-tenant-{name}", namespaces, 3, unready)


def known(*tenants: KnownTenant) -> dict[str, KnownTenant]:
    """Tenants by id."""
    return {one.id: one for one in tenants}


def test_rows_of_a_tenant_dimension_are_each_tenants_own() -> None:
    """The scope follows from the key's element, wherever it stands; without values all usable Tenants are meant."""
    plan = make_plan("c", backfill(partitions=DAYS), asset(DAY, AIRLINE), tenants=("UA", "DL"))
    assert list(plan.rows()) == [
        ("t/c/DL", "2025-01-01|DL"),
        ("t/c/UA", "2025-01-01|UA"),
        ("t/c/DL", "2025-01-02|DL"),
        ("t/c/UA", "2025-01-02|UA"),
    ]
    assert plan.scope == ""


def test_rows_of_a_named_tenant_are_all_its_own() -> None:
    """`tenant:` puts an asset without a tenant dimension into that tenant's scope; without it, the namespace's."""
    named = make_plan("c", backfill(tenant="UA", partitions=DAYS), asset(DAY))
    plain = make_plan("c", backfill(partitions=DAYS), asset(DAY))
    assert (named.scope, plain.scope) == ("t/c/UA", "n/c/ns")
    assert [tenant_of_scope(named.scope), tenant_of_scope(plain.scope)] == ["UA", None]


@pytest.mark.parametrize(
    ("spec", "the_asset", "field"),
    [
        ({"tenant": "UA"}, asset(DAY, AIRLINE), "spec.tenant"),
        ({}, asset(DAY, requiredTier="premium"), "spec.tenant"),
        ({"tenant": "UA"}, asset(DAY, storage={"prefix": "delays"}), "spec.asset"),
    ],
    ids=["named twice", "tier without tenant", "shared place"],
)
def test_a_tenant_that_does_not_fit_the_asset_is_refused(
    spec: dict[str, Any], the_asset: AssetResource, field: str
) -> None:
    """The field is named, before anything is planned."""
    with pytest.raises(InvalidSpec) as caught:
        check_tenant(the_asset.spec, backfill(**spec).spec)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"partitions": {"airline": {"values": ["UA"]}, **DAYS}}, ("UA",)),
        ({"keys": ["2025-01-01|DL", "2025-01-02|DL", "2025-01-01|UA"]}, ("DL", "UA")),
        ({"partitions": DAYS}, ("AA", "UA")),
    ],
)
def test_the_tenants_that_a_backfill_names(spec: dict[str, Any], expected: tuple[str, ...]) -> None:
    """By values, by keys, or all that the namespace may use."""
    assert wanted_tenants(asset(DAY, AIRLINE).spec, backfill(**spec).spec, ("AA", "UA")) == expected


def test_each_tenant_gets_its_own_verdict() -> None:
    """One admitted, one of too low a tier, one of another namespace, one not provisioned yet."""
    all_known = known(
        tenant("ok", "premium"),
        tenant("low", "basic"),
        tenant("far", "premium", namespaces=("elsewhere",)),
        tenant("new", "enterprise", unready="it has not been provisioned yet"),
    )
    verdict = admit(asset(DAY, AIRLINE, requiredTier="premium"), list(all_known), all_known, GUARDS)
    assert set(verdict.admitted) == {"t/c/ok"}
    assert verdict.refused["t/c/low"].startswith("tenant low (tier basic, required premium): guard 'tier' refused")
    assert "its namespaces do not include ns" in verdict.refused["t/c/far"]
    assert verdict.waiting == {"t/c/new": "Tenant new: it has not been provisioned yet"}
    assert verdict.limits == {"t/c/ok": 3, "t/c/low": 0, "t/c/far": 0, "t/c/new": 0}


def test_an_unknown_tenant_is_waited_for() -> None:
    """It may come with the next sync; until then nothing is planned."""
    with pytest.raises(TenantUnknown, match="'DL'"):
        require_known(("UA", "DL"), {"UA": 1})


def test_a_storage_location_keeps_tenants_apart() -> None:
    """`{tenant}` becomes the id; a prefix counts only as a whole segment; a bucket must be a bucket's name."""
    one = asset(DAY, AIRLINE, storage={"bucket": "data-{tenant}", "prefix": "x/{tenant}/y"})
    assert places_of(one.spec.storage, "ua1") == {"bucket": "data-ua1", "prefix": "x/ua1/y"}
    assert misplaced(one.spec, "ua1") is None
    assert "no bucket's name" in (misplaced(one.spec, "UA") or "")
    for double in ("ti..na", "ti.-na", "ti-.na"):
        assert "no bucket's name" in (misplaced(one.spec, double) or "")
    for shared in ({"prefix": "data-{tenant}"}, {"table": "delays"}, {"bucket": "b", "prefix": "p"}):
        with pytest.raises(InvalidSpec, match="no two tenants share a place"):
            asset(DAY, AIRLINE, storage=shared)
    for upward in ("{tenant}/../x", "{tenant}/..", "./{tenant}", "..", "a/{tenant}/."):
        with pytest.raises(InvalidSpec, match="leads out of a tenant's folder"):
            asset(DAY, AIRLINE, storage={"prefix": upward})


@pytest.mark.parametrize("part", ["schema", "table"])
def test_ids_that_differ_by_case_only_share_no_name(part: str) -> None:
    """Unquoted, `rep_UA` and `rep_ua` are one name, so both tenants are waited for; others, and a prefix, go on."""
    known_tenants = known(
        tenant("UA", "basic"), tenant("ua", "basic"), tenant("DL", "basic"), tenant("dl", "basic", namespaces=("far",))
    )
    named = asset(DAY, AIRLINE, storage={part: "rep_{tenant}"})
    verdict = admit(named, ["UA", "ua", "DL"], known_tenants, GUARDS)
    assert set(verdict.waiting) == {"t/c/UA", "t/c/ua"}
    assert "Tenant ua differs by case only" in verdict.waiting["t/c/UA"]
    assert set(verdict.admitted) == {"t/c/DL"}
    path = asset(DAY, AIRLINE, storage={"prefix": "rep/{tenant}"})
    assert admit(path, ["UA", "ua"], known_tenants, GUARDS).waiting == {}


def test_two_tenant_dimensions_are_refused() -> None:
    """A row belongs to one tenant."""
    with pytest.raises(InvalidSpec, match="two dimensions are of type tenant"):
        asset(AIRLINE, {"name": "other", "type": "tenant"})


@pytest.mark.parametrize(
    ("key", "place", "expected"), [("UA|d", 0, "UA"), ("d|UA", 1, "UA"), ("UA", 0, "UA"), ("d", 1, "")]
)
def test_the_tenant_of_a_key(key: str, place: int, expected: str) -> None:
    """The element at the tenant's place; an id never needs encoding."""
    assert tenant_of(key, place) == expected


def test_a_refused_tenant_is_no_success() -> None:
    """What was asked for is not there, so it ends as failed, with the reason per tenant; already made is a success."""
    refused = [Skipped("tenant low (tier basic, required premium): guard 'tier' refused", 2)]
    all_refused = judge(Counts(total=2, skipped=2), open_batches=0, cancelled=False, skipped=refused)
    part = judge(Counts(total=3, skipped=2, succeeded=1), open_batches=0, cancelled=False, skipped=refused)
    made = judge(
        Counts(total=2, skipped=2), open_batches=0, cancelled=False, skipped=[Skipped("AlreadyMaterialized", 2)]
    )
    assert (all_refused.stand, all_refused.reason) == (Stand.FAILED, "TenantRefused")
    assert "tenant low" in all_refused.message
    assert (part.stand, made.stand) == (Stand.PARTLY_FAILED, Stand.SUCCEEDED)


def test_a_set_that_is_a_slip_is_refused() -> None:
    """Two hourly dimensions over millennia are no plan; the number and the remedy are named."""
    hours = {"from": "1000-01-01T00:00:00Z", "through": "9000-01-01T00:00:00Z"}
    two = asset({"name": "a", "type": "datetime"}, {"name": "b", "type": "datetime"})
    with pytest.raises(InvalidSpec, match=r"at most 10,000,000 in one Backfill"):
        make_plan("c", backfill(partitions={"a": hours, "b": hours}), two)
