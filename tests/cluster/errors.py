"""What can go wrong with the cluster, each with the remedy in its message.

ClusterError
|-- CommandError       a program that was called ended with an error
`-- ComponentError     a part of the cluster ended, or did not become ready
"""


class ClusterError(Exception):
    """The cluster cannot be started, used or ended; the message says why and what to do."""


class CommandError(ClusterError):
    """A called program exited with an error; the message ends with the last lines that it printed."""


class ComponentError(ClusterError):
    """A part of the cluster ended or did not become ready; the message ends with the last lines of its log."""
