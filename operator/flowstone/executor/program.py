"""What a batch runs on this machine: an Asset's container without its image, or a Python function.

A container's command, arguments, environment and working directory mean here what they mean in a pod, `$(NAME)`
included. What only a cluster has is refused when the work could not be right without it, and named in a note when it
merely is not used. Pure.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowstone.errors import InvalidSpec
from flowstone.executor.template import check_template, template_digest

GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL where the template does not say otherwise, as in a pod."""

FLOWSTONE = (sys.executable, "-P", "-c", "from flowstone.cli.entry import main; main()")
"""This interpreter's `flowstone`, wherever its console script may lie; -P keeps the working directory off the path."""

_ROOT = "Asset.spec.template.spec"
_CONTAINER = f"{_ROOT}.containers[0]"
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")
_WORKER_VERBS = ("work", "exec")


@dataclass(frozen=True, slots=True)
class Program:
    """What each batch runs.

    Attributes:
        words: Command and arguments, with `$(NAME)` not expanded yet.
        environment: The container's own variables, in order, not expanded yet.
        folder: Where it is to run, if it says so.
        grace: Seconds between SIGTERM and SIGKILL.
        digest: Changes when something else would run.
        notes: What is not as it would be in a pod, for people.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str | None
    grace: float
    digest: str
    notes: tuple[str, ...] = ()


def program_of(template: Mapping[str, Any], around: Mapping[str, str]) -> Program:
    """Return what an Asset's pod template runs.

    Args:
        template: The pod template.
        around: The environment FlowStone itself was started with; it stands in for Secrets and ConfigMaps.

    Raises:
        InvalidSpec: It cannot run here; names the field, the value and the remedy.
    """
    spec = template["spec"]
    check_template(template, service_accounts=[_account(spec)], tenant_secrets=())
    container = _only_container(spec)
    return Program(
        words=_words(container),
        environment=dict(_variables(container, around)),
        folder=container.get("workingDir"),
        grace=float(spec.get("terminationGracePeriodSeconds", GRACE)),
        digest=template_digest(template),
        notes=tuple(_notes(spec, container)),
    )


def function_program(target: str) -> Program:
    """Return what runs a Python function `package.module:name` for each partition."""
    words = (*FLOWSTONE, "work", target)
    return Program(words, {}, None, GRACE, template_digest({"function": target}))


def resolved(
    program: Program, contract: Mapping[str, str], around: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the whole environment of one batch's process.

    Args:
        program: What to run.
        contract: The contract's variables and libpq's, which win over those around.
        around: The environment FlowStone itself was started with, without what is FlowStone's or libpq's.
    """
    known = dict(contract)
    for name, value in program.environment.items():
        known[name] = expanded(value, known)  # a value may refer to those before it
    return [expanded(word, known) for word in program.words], {**around, **known}


def surroundings(environment: Mapping[str, str], scripts: str, path: Sequence[str] = ()) -> dict[str, str]:
    """Return what a batch's process inherits: everything but what tells it who it is for FlowStone and Postgres.

    Args:
        environment: The environment FlowStone itself was started with.
        scripts: Folder of this interpreter's console scripts, which come first on PATH.
        path: Where Python looks for modules besides; for functions that were imported here.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith(("FLOWSTONE_", "PG"))}
    kept["PATH"] = os.pathsep.join(filter(None, [scripts, kept.get("PATH")]))
    if path:
        kept["PYTHONPATH"] = os.pathsep.join(path)
    return kept


def expanded(text: str, values: Mapping[str, str]) -> str:
    """Return a text with `$(NAME)` replaced, as Kubernetes does; `$$` is a `$`, an unknown name stays."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else values.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text)


def _account(spec: Mapping[str, Any]) -> str:
    """The account that the template names: here it has no meaning, so any will do."""
    return str(spec.get("serviceAccountName") or spec.get("serviceAccount") or "default")


def _only_container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    if spec.get("initContainers"):
        raise InvalidSpec(f"{_ROOT}.initContainers", len(spec["initContainers"]), _ONE)
    containers = spec["containers"]
    if len(containers) != 1:
        raise InvalidSpec(f"{_ROOT}.containers", len(containers), _ONE)
    container: Mapping[str, Any] = containers[0]
    return container


_ONE = "on this machine a batch is one process: keep one container, or run it in a cluster"


def _words(container: Mapping[str, Any]) -> tuple[str, ...]:
    """The words, with `flowstone` being this interpreter's, also where the image's entry point stands for it."""
    command, args = _texts(container, "command"), _texts(container, "args")
    if not command and args[:1] and args[0] in _WORKER_VERBS:
        command = ["flowstone"]
    if not command:
        remedy = "write the program to run: the image, whose own command would run in a pod, is not used here"
        raise InvalidSpec(f"{_CONTAINER}.command", None, remedy)
    if command[0].rsplit("/", 1)[-1] == "flowstone":
        command = [*FLOWSTONE, *command[1:]]
    return (*command, *args)


def _texts(container: Mapping[str, Any], name: str) -> list[str]:
    given = container.get(name) or []
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given) or isinstance(given, str):
        raise InvalidSpec(f"{_CONTAINER}.{name}", given, "write a list of texts, as in [flowstone, work, pkg.mod:fn]")
    return list(given)


def _variables(container: Mapping[str, Any], around: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for index, one in enumerate(container.get("env") or []):
        name, field = str(one.get("name")), f"{_CONTAINER}.env[{index}]"
        if "valueFrom" not in one:
            value = one.get("value", "")
            if not isinstance(value, str):
                raise InvalidSpec(f"{field}.value", value, "write it in quotes: the API server takes texts only")
            yield name, value
        elif name in around:
            yield name, around[name].replace("$", "$$")
        else:
            raise InvalidSpec(f"{field}.valueFrom", name, f"set the variable {name} before you start: it is used here")


def _notes(spec: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    if container.get("image"):
        yield f"image {container['image']} is not used: the command runs with what this machine has"
    if spec.get("volumes"):
        yield "volumes are not mounted: paths are those of this machine"
    if container.get("envFrom"):
        yield "envFrom is not read: set those variables before you start"
    if container.get("resources"):
        yield "resources are not enforced"
