"""What the engine knows of whatever runs a batch: four states, and why something does not start.

A batch's run is `Running` until nothing of it can act any more, then `Ended`; `Gone` when there is no trace of
it. Adapters (`jobs`, `processes`) translate their own world into these values; the engine decides on them alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Running:
    """The run is under way, or waits to start, or still ends.

    Attributes:
        ready: Its process has started (a pod is ready or has ended).
        stopping: It was asked to stop and has not ended yet.
        lost: Its machine does not answer any more; what it had not reported goes back at once.
    """

    ready: bool = False
    stopping: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over and nothing of it can act any more.

    Attributes:
        succeeded: It ended with exit code 0.
        exit_code: The code it ended with; None when no process ever told one.
        disrupted: It was ended from outside (eviction, preemption, node loss, admission); charge nobody.
        reason: A short word, such as `OOMKilled`, `Error`, `DeadlineExceeded`.
        message: The last words of its log, or what the platform said.
        positions: Outcomes by position, for a worker without a database: position -> error, "" = success.
    """

    succeeded: bool
    exit_code: int | None = None
    disrupted: bool = False
    reason: str = ""
    message: str = ""
    positions: tuple[tuple[int, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no trace of the run; whatever it did not report is unknown."""


RunState = Running | Ended | Gone


@dataclass(frozen=True, slots=True)
class Blockage:
    """Why a run does not start.

    Attributes:
        reason: CamelCase and stable: QuotaExceeded, PodSecurity, ImagePull, ServiceAccount, Volume, Config,
            Unschedulable, CreateFailed, NameConflict.
        message: The platform's own words.
        waiting: True when it is only waiting for room (unschedulable), which is no fault of the request.
    """

    reason: str
    message: str
    waiting: bool = False
