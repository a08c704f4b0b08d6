#!/bin/sh
# Starts PostgreSQL, and makes its database cluster first when there is none.
#
# The environment is the customary one: POSTGRES_PASSWORD (or POSTGRES_PASSWORD_FILE), POSTGRES_USER, POSTGRES_DB,
# PGDATA. Arguments that begin with a dash go to the server; any other command is run as it is. Only PGDATA,
# /var/run/postgresql and /tmp need to be writable. The password is passed by a pipe from a shell builtin, so it
# stands in no argument list and in no log.
set -eu

case "${1:-}" in
    '' | -*) set -- postgres "$@" ;;
esac
[ "$1" = postgres ] || exec "$@"

# Given root, keep it only for making the folder usable.
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chown postgres:postgres "$PGDATA" /var/run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}

password() {
    if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
        cat "$POSTGRES_PASSWORD_FILE"
    elif [ -n "${POSTGRES_PASSWORD:-}" ]; then
        printf '%s\n' "$POSTGRES_PASSWORD"
    else
        echo "set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE: a database without a password is not made" >&2
        return 1
    fi
}

# The new cluster is made aside and moved into place with PG_VERSION last, so that a kill in between is only
# repeated. A rename of the folder as a whole is impossible: it may be a mount point.
initialise() {
    new=$PGDATA/.new
    rm -rf "$new"
    password > /dev/null
    password | initdb --pgdata="$new" --username="$user" --pwfile=/dev/stdin --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C.UTF-8 --no-instructions --no-sync > /dev/null
    echo 'host all all all scram-sha-256' >> "$new/pg_hba.conf"
    if [ "$database" != postgres ]; then
        quoted=$(printf '%s' "$database" | sed 's/"/""/g')
        printf 'CREATE DATABASE "%s"\n' "$quoted" | postgres --single -D "$new" postgres > /dev/null
    fi
    mv "$new/PG_VERSION" "$PGDATA/.PG_VERSION"
    for entry in "$new"/*; do
        rm -rf "${PGDATA:?}/${entry##*/}"
        mv "$entry" "$PGDATA/"
    done
    rmdir "$new"
    mv "$PGDATA/.PG_VERSION" "$PGDATA/PG_VERSION"
}

mkdir -p "$PGDATA"
chmod 0700 "$PGDATA" # the server refuses a folder that others may read, or that is not its own
[ -s "$PGDATA/PG_VERSION" ] || initialise
unset POSTGRES_PASSWORD
shift
exec postgres -D "$PGDATA" -c listen_addresses='*' "$@"
