-- Tables of the example. `flight` has the columns of the data file, in its order, so that the file can be copied in.
CREATE SCHEMA flights;

CREATE TABLE flights.flight (
    year smallint NOT NULL,
    month smallint NOT NULL,
    day smallint NOT NULL,
    dep_time smallint,              -- hhmm, local; NULL: the flight was cancelled
    sched_dep_time smallint NOT NULL,
    dep_delay smallint,             -- minutes; negative: early
    arr_time smallint,
    sched_arr_time smallint NOT NULL,
    arr_delay smallint,
    carrier text NOT NULL,
    flight integer NOT NULL,
    tailnum text,
    origin text NOT NULL,
    dest text NOT NULL,
    air_time smallint,
    distance smallint NOT NULL,
    hour smallint NOT NULL,
    minute smallint NOT NULL,
    time_hour timestamptz NOT NULL,
    flown_on date GENERATED ALWAYS AS (make_date(year, month, day)) STORED
);

CREATE TABLE flights.daily_delay (
    flown_on date NOT NULL,
    carrier text NOT NULL,
    flights integer NOT NULL,
    cancelled integer NOT NULL,
    mean_departure_delay double precision,   -- minutes; NULL: none departed
    p95_departure_delay double precision,
    mean_arrival_delay double precision,
    p95_arrival_delay double precision,
    PRIMARY KEY (flown_on, carrier)
);

-- What was loaded, so that a second run has nothing to do.
CREATE TABLE flights.source (
    file text PRIMARY KEY,
    sha256 text NOT NULL,
    rows bigint NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now()
);

-- Worker pods without a tenant log in as their namespace, and all namespaces' logins are in one group. So every
-- namespace may read the flights and write the result: fine for an example, for more see docs/security.md.
GRANT USAGE ON SCHEMA flights TO flowstone_namespace;
GRANT SELECT ON flights.flight TO flowstone_namespace;
GRANT SELECT, INSERT, UPDATE, DELETE ON flights.daily_delay TO flowstone_namespace;
