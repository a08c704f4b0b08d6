#!/bin/sh
# `flowstone` as the first process of a container.
#
# The kernel keeps signals from process 1 until it has a handler for them, and Python takes tenths of a second to get
# that far: a SIGTERM in this time was lost, and the pod sat out its whole grace period. A shell is there within a
# millisecond. It passes the signal on, waits, and ends with the program's own exit code.
program=/opt/flowstone/bin/flowstone
[ $$ -eq 1 ] || exec "$program" "$@"
trap 'kill -TERM "$child" 2>/dev/null || exit 143' TERM INT
"$program" "$@" <&0 &
child=$!
while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
exit "$code"
