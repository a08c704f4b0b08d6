"""`plan` and `explain`: what would run, and why nothing runs."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowstone.cli.app import main
from flowstone.cli.explaining import REMEDIES, findings
from flowstone.cli.manifests import read
from flowstone.cli.planning import outlook
from flowstone.cli.wanted import Ahead
from flowstone.errors import InvalidSpec

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"

Json = dict[str, Any]


def asset(**dimension: object) -> Json:
    """An Asset with one dimension."""
    template = {"spec": {"containers": [{"name": "main", "image": "x"}]}}
    return {"metadata": {"name": "a"}, "spec": {"partitionedBy": [dimension], "template": template}}


def backfill(**spec: object) -> Json:
    """A Backfill over it."""
    return {"metadata": {"name": "b"}, "spec": {"asset": "a", **spec}}


def test_outlook_of_a_year() -> None:
    """365 days over 20 slots are batches of 19, so 20 Jobs; the order turns first and last around."""
    days = {"day": {"from": "2013-01-01", "through": "2013-12-31"}}
    plan = outlook(backfill(partitions=days, maxParallel=20, order="Descending"), asset(name="day", type="date"))
    assert (plan.total, plan.first, plan.last) == (365, "2013-12-31", "2013-01-01")
    assert (plan.batch_size, plan.batches) == (19, 20)
    assert plan.intervals == "2013-01-01..2013-12-31 (365)"


def test_outlook_of_a_set_too_large_to_write() -> None:
    """A million hours are planned without being written down."""
    hours = {"hour": {"from": "1900-01-01T00:00:00Z", "before": "2020-01-01T00:00:00Z"}}
    plan = outlook(backfill(partitions=hours), asset(name="hour", type="datetime"))
    assert (plan.total, plan.intervals) == (43_829 * 24, "")


def test_outlook_refuses_what_the_operator_would_refuse() -> None:
    """The same field, value and remedy as in the status of a Backfill."""
    with pytest.raises(InvalidSpec, match=r"spec\.partitions\.day\.from.*2013-02-30"):
        outlook(
            backfill(partitions={"day": {"from": "2013-02-30", "through": "2013-03-01"}}),
            asset(name="day", type="date"),
        )


def test_days_and_instants_need_no_quotes(tmp_path: Path) -> None:
    """kubectl sends `from: 2013-01-01` as text; a file that it accepts is not refused here."""
    file = tmp_path / "backfill.yaml"
    file.write_text("{metadata: {name: b}, spec: {day: 2013-01-01, hour: 2013-01-01T00:00:00Z, n: 3}}")
    assert read(file) == [
        {
            "metadata": {"name": "b"},
            "spec": {"day": "2013-01-01", "hour": "2013-01-01T00:00:00Z", "n": 3},
        }
    ]


@pytest.mark.parametrize(
    "text",
    [
        "metadata: {name: b}\nspec: {}\nspec: {asset: a}\n",
        "metadata: {name: b}\nspec:\n  maxParallel: 2\n  asset: a\n  maxParallel: 200\n",
    ],
    ids=["at the top", "inside"],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str) -> None:
    """The message names the key and its line, so that nobody works with the value they did not mean."""
    file = tmp_path / "b.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSpec, match=r"'(spec|maxParallel)' stands here twice[\s\S]*line [35]"):
        read(file)


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    """YAML's `<<` brings keys that the mapping itself says otherwise."""
    file = tmp_path / "b.yaml"
    file.write_text("metadata: &m {name: b, namespace: n}\nspec: {template: {<<: *m, name: c}}\n")
    assert read(file)[0]["spec"]["template"] == {"name": "c", "namespace": "n"}


def test_plan_command_on_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    """It works on files alone, and as JSON it can be compared by scripts."""
    file = str(EXAMPLES / "flights" / "flaky.yaml")
    assert main(["backfill", "plan", "-f", file, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["asset"], found["total"], found["batches"]) == ("flaky-delays", 365, 20)


def test_plan_command_without_the_asset_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An Asset file that has another Asset is a mistake, and is not looked up in some cluster instead."""
    file = tmp_path / "b.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "flowstone.dev/v1alpha1", "kind": "Backfill", **backfill()}))
    assert main(["backfill", "plan", "-f", str(file), "--asset", str(EXAMPLES / "flights" / "asset.yaml")]) == 2
    assert "no Asset 'a'" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_example_is_good(file: Path) -> None:
    """Each Backfill of the examples fits an Asset beside it."""
    here = [one for path in file.parent.glob("*.yaml") for one in yaml.safe_load_all(path.read_text("utf-8"))]
    assets = {one["metadata"]["name"]: one for one in here if one["kind"] == "Asset"}
    tenants = [one for one in here if one["kind"] == "Tenant"]
    for one in yaml.safe_load_all(file.read_text("utf-8")):
        if one["kind"] == "Backfill":
            assert outlook(one, assets[one["spec"]["asset"]], tenants).total > 0


def resource(counts: Json | None = None, **conditions: tuple[str, str]) -> Json:
    """A Backfill with these counts, and conditions as type=(status, reason)."""
    listed = [
        {"type": kind, "status": status, "reason": reason, "message": f"about {reason}"}
        for kind, (status, reason) in conditions.items()
    ]
    return {
        "metadata": {"name": "b", "namespace": "n", "generation": 1, "uid": "u"},
        "spec": {"asset": "a"},
        "status": {"observedGeneration": 1, "counts": counts or {}, "conditions": listed, "activeBatches": 0},
    }


def job(name: str) -> Json:
    """A Job that has just been made."""
    return {"metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": "2026-11-24T11:59:00Z"}, "status": {}}


def event(about: str, message: str) -> Json:
    """The Job controller's Event about a Job that it could not make a pod for."""
    return {
        "metadata": {"name": "e", "resourceVersion": "1"},
        "involvedObject": {"uid": f"uid-{about}"},
        "reason": "FailedCreate",
        "message": message,
        "lastTimestamp": "2026-11-24T11:59:30Z",
    }


def test_explain_a_blocked_backfill() -> None:
    """The condition with what to do and the Jobs it is about, in one breath; then the Jobs' states."""
    quota = "pods is forbidden: exceeded quota: none"
    blocked = resource(Blocked=("True", "QuotaExceeded"))
    told, jobs = findings(blocked, [job("j1")], [], [event("j1", quota)], NOW)
    assert told.words == "QuotaExceeded: about QuotaExceeded (1 Jobs do not start, such as j1)"
    assert told.remedy == REMEDIES["QuotaExceeded"]
    assert jobs.words == "1 Jobs: 1 starting"


def test_explain_jobs_that_are_held_up_by_something_else() -> None:
    """What the condition does not name, the Jobs do, with a remedy of its own."""
    quota = "pods is forbidden: exceeded quota: none"
    blocked = resource(Blocked=("True", "ImagePull"))
    _, other, _ = findings(blocked, [job("j1")], [], [event("j1", quota)], NOW)
    assert other.words == f"QuotaExceeded: 1 Jobs do not start, such as j1: {quota}"
    assert other.remedy == REMEDIES["QuotaExceeded"]


def test_explain_one_that_waits_for_its_back_off() -> None:
    """Queued partitions without an open batch are explained, although no condition is bad."""
    (found,) = findings(resource({"queued": 3}, Ready=("True", "Running")), [], [], [], NOW)
    assert found.words == "3 partitions wait and no batch is open: about Running"
    assert "their back-off, for another Backfill" in found.remedy


def test_explain_one_whose_next_retry_is_known() -> None:
    """Nothing is guessed where the operator says when it goes on, and after which error."""
    one = resource({"queued": 3}, Ready=("True", "Running"))
    told = "0 of 3 partitions finished; the next retry is at 12:01:00 UTC, after this error: no warehouse"
    one["status"]["conditions"][0]["message"] = told
    (found,) = findings(one, [], [], [], NOW)
    assert found.words == f"3 partitions wait and no batch is open: {told}"
    assert found.remedy == "they wait for their back-off; a shorter spec.retry.backoffSeconds counts at once"


def test_explain_one_that_comes_second() -> None:
    """The Backfill that has the same partitions first is named, and nothing is guessed."""
    one = resource({"queued": 3}, Ready=("True", "Running"))
    waits, found = findings(one, [], [], [], NOW, [Ahead("two-a", "Suspended", 3)])
    assert waits.remedy == ""
    assert found.words == "Backfill two-a (Suspended) is older and asks for 3 of the same partitions"
    assert "`flowstone backfill explain two-a -n n`" in found.remedy


@pytest.mark.parametrize("reason", ["FailureBudgetPassed", "SuspendedBySpec"])
def test_explain_one_that_is_suspended(reason: str) -> None:
    """Its partitions wait for people and for nothing else; the command is ready to be copied."""
    (found,) = findings(resource({"queued": 24}, Suspended=("True", reason)), [], [], [], NOW)
    assert found.words == f"{reason}: about {reason}"
    assert "`flowstone backfill resume b -n n`" in found.remedy


def test_explain_one_that_is_suspended_twice() -> None:
    """Where people paused it too, a raised budget would not go on."""
    suspended = resource({"queued": 24}, Suspended=("True", "FailureBudgetPassed"))
    suspended["spec"]["suspend"] = "Drain"
    _, found = findings(suspended, [], [], [], NOW)
    assert found.words == "spec.suspend is set too: a raised budget alone does not go on"


def test_explain_one_that_is_being_cancelled() -> None:
    """It waits for its Jobs to end, not for a back-off."""
    (found,) = findings(resource({"queued": 3}, Ready=("True", "Cancelling")), [], [], [], NOW)
    assert (found.words, found.remedy) == ("Cancelling: about Cancelling", REMEDIES["Cancelling"])


def failed(message: str = "40 failed of 40") -> Json:
    """A Backfill that failed, two of three partitions with the same error."""
    one = resource(Finished=("True", "Failed"), Stalled=("True", "Failed"))
    errors = {"a": "disk full", "b|2": "Traceback\nno warehouse\n", "c": "no warehouse"}
    one["status"]["failures"] = [{"partition": key, "error": text} for key, text in errors.items()]
    for condition in one["status"]["conditions"]:
        condition["message"] = message
    return one


def test_explain_a_failed_one_names_the_most_frequent_error() -> None:
    """And which log to read, as a command for the shell."""
    told, errors, _ = findings(failed(), [], [], [], NOW)
    assert told.remedy.startswith("mend the cause, then `flowstone backfill retry b -n n`")
    assert errors.words.endswith("most frequent error (2 of the 3 in the status): no warehouse")
    assert errors.remedy == "`flowstone backfill logs b 'b|2' -n n` prints its log"


def test_explain_does_not_repeat_the_error_of_the_condition() -> None:
    """Where the operator has counted all failures, ten of them say nothing more."""
    _, errors, _ = findings(failed("40 failed; most frequent error (39 times): no warehouse"), [], [], [], NOW)
    assert errors.words == "partition b|2 is one of those that failed"


def test_explain_one_that_failed_and_was_cancelled() -> None:
    """`retry` would do nothing, so it is not advised."""
    over = failed()
    over["spec"]["cancel"] = True
    assert "another Backfill, with select: Failed" in findings(over, [], [], [], NOW)[0].remedy


def test_explain_one_that_nobody_has_seen() -> None:
    """Without a status it is the operator that is missing."""
    (found,) = findings({"metadata": {"name": "b", "namespace": "n"}, "spec": {}}, [], [], [], NOW)
    assert found.words == "the operator has not seen it yet"


def test_explain_a_finished_one() -> None:
    """The question why nothing happens has a plain answer."""
    (found,) = findings(resource(Finished=("True", "Succeeded")), [], [], [], NOW)
    assert found.words == "it is finished: an unchanged spec does nothing more"


def handbook(title: str) -> str:
    """One chapter of docs/operations.md."""
    return (ROOT / "docs" / "operations.md").read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0]


def test_every_reason_of_the_handbook_has_a_remedy() -> None:
    """Whatever stands in the way of a Backfill, `explain` says what to do; there is none where all is as asked."""
    rows = [line.split("|")[1] for line in handbook("Reasons, and what to do").splitlines() if line.startswith("| `")]
    reasons = {reason for row in rows for reason in re.findall(r"`(\w+)`", row)}
    assert reasons - set(REMEDIES) == {"Running", "Succeeded", "Cancelled"}


def test_every_remedy_stands_in_the_handbook() -> None:
    """docs/operations.md has each reason that `explain` knows."""
    chapter = handbook("Reasons, and what to do")
    assert [reason for reason in REMEDIES if f"`{reason}`" not in chapter] == []
