"""How claimed rows become batches: rules that hold for any queue."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from flowstone.backfill.records import SUSPECT
from flowstone.db.batching import KEY_BYTES, Candidate, group, weight

SCOPES = ("n/c/a", "t/c/one", "t/c/two")


@st.composite
def queues(draw: st.DrawFn) -> list[Candidate]:
    """Rows of three scopes in any order, some suspect, some with keys as long as they may be."""
    marks = st.sampled_from(["", "", "", SUSPECT, f"{SUSPECT} 7/0", f"{SUSPECT} 7/1"])
    drawn = draw(st.lists(st.tuples(st.sampled_from(SCOPES), st.sampled_from([10, 500]), marks), max_size=400))
    return [
        Candidate(scope, f"{number:05d}".ljust(length, "ß"), f"(0,{number})", suspect if length == 10 else "")
        for number, (scope, length, suspect) in enumerate(drawn)
    ]


@given(queues(), st.integers(0, 20), st.integers(1, 300), st.dictionaries(st.sampled_from(SCOPES), st.integers(0, 3)))
def test_every_rule_of_a_batch(queue: list[Candidate], batches: int, size: int, slots: dict[str, int]) -> None:
    """One scope, queue order, the caps, the size, the bytes, suspects alone, halves apart, no row twice."""
    made = group(queue, batches=batches, size=size, slots=slots)
    rows = [row for each in made for row in each.rows]
    position = {row.place: number for number, row in enumerate(queue)}
    per_scope = Counter(each.scope for each in made)
    assert len(made) <= batches
    assert all(per_scope[scope] <= limit for scope, limit in slots.items())
    assert len(set(rows)) == len(rows)
    for each in made:
        assert {row.scope for row in each.rows} == {each.scope}
        assert [position[row.place] for row in each.rows] == sorted(position[row.place] for row in each.rows)
        assert 1 <= len(each.rows) <= size
        assert sum(weight(row.partition) for row in each.rows) <= KEY_BYTES
        assert {row.suspect for row in each.rows} == {each.suspect}
        assert len(each.rows) == 1 or each.suspect != SUSPECT


@given(queues(), st.integers(1, 300))
def test_with_room_for_all_nobody_is_left(queue: list[Candidate], size: int) -> None:
    """Where no cap is reached, every row is in a batch, and in a scope the first rows come first."""
    made = group(queue, batches=len(queue) + 1, size=size, slots={})
    assert {row.place for each in made for row in each.rows} == {row.place for row in queue}


def test_batches_are_as_full_as_they_may_be() -> None:
    """Ten rows in batches of four make batches of four, four and two."""
    queue = [Candidate("s", f"p{number}", f"(0,{number})", suspect="") for number in range(10)]
    made = group(queue, batches=10, size=4, slots={})
    assert [[row.partition for row in each.rows] for each in made] == [
        ["p0", "p1", "p2", "p3"],
        ["p4", "p5", "p6", "p7"],
        ["p8", "p9"],
    ]


def test_a_full_scope_lets_others_pass() -> None:
    """Rows of a scope without a slot stay in the queue; those behind them are taken."""
    queue = [Candidate(scope, scope, f"(0,{n})", suspect="") for n, scope in enumerate(["a", "b", "a", "b"])]
    made = group(queue, batches=5, size=1, slots={"a": 0})
    assert [each.scope for each in made] == ["b", "b"]


def test_the_weight_of_a_key_is_its_share_of_the_manifest() -> None:
    """A key weighs what it adds to the JSON of a file with one key a line."""
    for key in ("2026-01-01", 'quo"te\\', "日本"):
        text = json.dumps("first\n" + key + "\n")
        assert weight(key) == len(text) - len(json.dumps("first\n"))
