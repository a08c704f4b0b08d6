"""Jobs that ended well stay a while: taking one away costs the cluster about as much as half of running it.

So they are swept together: when the backfill rests, when the platform's quota is full, and when they become many. What
counts are the partitions in them, because a Job carries its keys; with large batches each Job goes at once.
"""

from __future__ import annotations

MANY = 500
"""Partitions in Jobs of one backfill that may be over and still be there."""


class FinishedJobs:
    """When to look for Jobs that ended well; a replica knows of those that it created since it last looked."""

    def __init__(self) -> None:
        self._partitions: dict[str, int] = {}

    def are_wanted(self, uid: str, *, resting: bool) -> bool:
        """Whether a look at a backfill's Jobs is to find those that ended well, too.

        Args:
            uid: The Backfill's; of one that this replica does not know it wants to know everything.
            resting: No batch of it is open.
        """
        return resting or self._partitions.get(uid, MANY) >= MANY

    def created(self, uid: str, partitions: int) -> None:
        """Count a Job that was created."""
        self._partitions[uid] = self._partitions.get(uid, MANY) + partitions

    def stand_in_the_way(self, uid: str) -> None:
        """Have them looked for next time, as there is no room for more Jobs."""
        self._partitions.pop(uid, None)

    def were_seen(self, uid: str, *, resting: bool) -> None:
        """Begin to count anew: whoever sees them takes them away."""
        if resting:
            self._partitions.pop(uid, None)
        else:
            self._partitions[uid] = 0
