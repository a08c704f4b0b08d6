"""What an Asset's container means on this machine."""

from __future__ import annotations

import os
from typing import Any

import pytest

from flowstone.errors import InvalidSpec
from flowstone.executor.program import (
    FLOWSTONE,
    GRACE,
    Program,
    expanded,
    function_program,
    program_of,
    resolved,
    surroundings,
)

Json = dict[str, Any]


def template(container: Json, **spec: Any) -> Json:
    """A pod template with one container."""
    return {"spec": {"containers": [{"name": "main", "command": ["true"], **container}], **spec}}


def test_references_are_expanded_as_kubernetes_does() -> None:
    """`$(NAME)` is replaced, `$$` is a dollar sign, and what is not known stays as it was written."""
    assert expanded("$(A)/$(B)/$$(A)/$A", {"A": "1"}) == "1/$(B)/$(A)/$A"


def test_flowstone_is_this_interpreters() -> None:
    """`flowstone` in a command, under whatever path, is this interpreter's; `sh` is what PATH says."""
    assert program_of(template({"command": ["flowstone", "work"], "args": ["m:f"]}), {}).words == (
        *FLOWSTONE,
        "work",
        "m:f",
    )
    assert program_of(template({"command": ["/usr/bin/flowstone", "exec"]}), {}).words == (*FLOWSTONE, "exec")
    assert program_of(template({"command": ["sh", "-c", "true"]}), {}).words == ("sh", "-c", "true")


def test_args_alone_stand_for_the_images_entry_point() -> None:
    """FlowStone's own image has `flowstone` as its entry point, so `args: [work, m:f]` runs it here too."""
    assert program_of(template({"command": None, "args": ["work", "m:f"]}), {}).words == (*FLOWSTONE, "work", "m:f")


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        (template({"command": None}), "containers[0].command"),
        (template({"command": None, "args": ["serve"]}), "containers[0].command"),
        (template({"command": "sleep 1"}), "containers[0].command"),
        (template({"args": [1]}), "containers[0].args"),
        (template({"env": [{"name": "A", "value": 1}]}), "containers[0].env[0].value"),
        (template({"env": [{"name": "S", "valueFrom": {"secretKeyRef": {}}}]}), "containers[0].env[0].valueFrom"),
        (template({"env": [{"name": "PGHOST", "value": "x"}]}), "containers[0].env[0].name"),
        (template({}, initContainers=[{"name": "i"}]), "initContainers"),
        ({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}, "containers"),
    ],
)
def test_what_cannot_run_here_is_refused_by_its_field(broken: Json, field: str) -> None:
    """No command, two containers, a Secret that is not there: each is refused, and the message names the field."""
    with pytest.raises(InvalidSpec) as refused:
        program_of(broken, {})
    assert refused.value.field.endswith(field)


def test_a_variable_around_stands_in_for_a_secret() -> None:
    """`valueFrom` takes the variable of that name from the environment, whatever characters are in it."""
    secret = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    program = program_of(template({"env": [secret]}), {"S": "p$(A)$$x"})
    _, environment = resolved(program, {"A": "1"}, {})
    assert environment["S"] == "p$(A)$$x"


def test_values_may_refer_to_those_before_them() -> None:
    """The contract comes first, then the container's variables in order; words see all of them."""
    env = [
        {"name": "DAY", "value": "day $(FLOWSTONE_PARTITION)"},
        {"name": "BOTH", "value": "$(DAY), $(LATER)"},
        {"name": "LATER", "value": "no"},
    ]
    program = program_of(template({"command": ["echo", "$(BOTH)"], "env": env}), {})
    words, environment = resolved(program, {"FLOWSTONE_PARTITION": "2025-01-01"}, {"HOME": "/h", "DAY": "around"})
    assert words == ["echo", "day 2025-01-01, $(LATER)"]
    assert (environment["HOME"], environment["DAY"], environment["LATER"]) == ("/h", "day 2025-01-01", "no")


def test_what_is_not_used_is_said() -> None:
    """Image, volumes, envFrom and resources have a note each; a template without them has none."""
    container = {"image": "example/x:1", "envFrom": [{"configMapRef": {"name": "c"}}], "resources": {"limits": {}}}
    notes = program_of(template(container, volumes=[{"name": "v", "emptyDir": {}}]), {}).notes
    assert [note.split()[0] for note in notes] == ["image", "volumes", "envFrom", "resources"]
    assert program_of(template({}), {}).notes == ()


def test_grace_and_folder_are_the_templates() -> None:
    """The time between SIGTERM and SIGKILL is 30 s, as in a pod, unless the template says otherwise."""
    assert program_of(template({}), {}).grace == GRACE
    program = program_of(template({"workingDir": "/srv"}, terminationGracePeriodSeconds=5), {})
    assert (program.grace, program.folder) == (5.0, "/srv")


def test_identity_and_secrets_are_not_inherited() -> None:
    """What says who FlowStone is at Postgres stays here; the rest is inherited, with our scripts first on PATH."""
    own = {"PGPASSWORD": "x", "FLOWSTONE_DATABASE_URL": "y", "PATH": "/bin", "AWS_REGION": "eu"}
    assert surroundings(own, "/venv/bin", ["/a", "/b"]) == {
        "PATH": os.pathsep.join(["/venv/bin", "/bin"]),
        "AWS_REGION": "eu",
        "PYTHONPATH": os.pathsep.join(["/a", "/b"]),
    }


def test_another_function_is_another_digest() -> None:
    """A function's program changes its digest with its name, and only then."""
    one: Program = function_program("m:f")
    assert one == function_program("m:f")
    assert one.digest != function_program("m:g").digest
