"""The asset `daily-delays`: how late the flights of one day were, by carrier.

`flowstone work delays:daily_delays` calls the function once per day. What it writes through `partition.connection` is
committed together with the record that the day is done: both are there, or neither.
"""

import os

from flowstone import Partition

FORGET = "DELETE FROM flights.daily_delay WHERE flown_on = %(day)s"

COMPUTE = """
INSERT INTO flights.daily_delay
SELECT flown_on, carrier, count(*), count(*) FILTER (WHERE dep_time IS NULL),
       avg(dep_delay), percentile_cont(0.95) WITHIN GROUP (ORDER BY dep_delay),
       avg(arr_delay), percentile_cont(0.95) WITHIN GROUP (ORDER BY arr_delay)
FROM flights.flight WHERE flown_on = %(day)s
GROUP BY flown_on, carrier
"""


def daily_delays(partition: Partition) -> None:
    """Compute one day anew; doing it twice gives the same rows."""
    day = {"day": partition.key}
    partition.connection.execute(FORGET, day)
    partition.connection.execute(COMPUTE, day)


def flaky_delays(partition: Partition) -> None:
    """The same, but it fails on the days that FAIL_ON lists: a Backfill that ends as failed in part."""
    if partition.text in os.environ.get("FAIL_ON", "").split(","):
        raise ValueError(f"no weather report for {partition.text}")
    daily_delays(partition)
