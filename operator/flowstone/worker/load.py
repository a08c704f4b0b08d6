"""Finding the user's function and calling it."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from flowstone.worker.context import Partition
from flowstone.worker.failure import FunctionError, describe

Function = Callable[[Partition], Any]


def load(target: str) -> Function:
    """Return the function of a `package.module:function`.

    Raises:
        FunctionError: it cannot be imported or is no function; the message names what to change.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise FunctionError(f"{target!r} names no function; write package.module:function.")
    found: Any = _module(module_name, target)
    for name in path.split("."):
        if not hasattr(found, name):
            raise FunctionError(
                f"{target!r} cannot be found: {getattr(found, '__name__', found)!r} has no {name!r};"
                " check the Asset's command against the image."
            )
        found = getattr(found, name)
    if not callable(found):
        raise FunctionError(f"{target!r} is a {type(found).__name__} and cannot be called; name a function.")
    return found  # type: ignore[no-any-return]  # only its being callable is known


def call(function: Function, partition: Partition) -> None:
    """Call the function for a partition; a coroutine is run to its end.

    Raises:
        FunctionError: it returned something that still would have to be run.
    """
    result = function(partition)
    if inspect.isawaitable(result):
        asyncio.run(_finish(result))
    elif inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise FunctionError("The function is a generator, so nothing of it was run; write it without `yield`.")


def _module(name: str, target: str) -> Any:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise SystemExit while it is imported
        raise FunctionError(
            f"{target!r} cannot be imported: {describe(error)};"
            " the image must hold the module, in the working directory or installed."
        ) from error


async def _finish(result: Awaitable[Any]) -> None:
    await result
