"""The asset `airline-months`: what one airline flew in one month, computed with that airline's own login.

No statement says whose rows it means: Postgres shows a tenant's login its own rows of `flights.airline_months` alone,
and fills in `tenant_id` where a row is written.
"""

from flowstone import Partition

FORGET = "DELETE FROM flights.airline_months WHERE month = %(month)s"  # this airline's; others' rows are out of reach

COMPUTE = """
INSERT INTO flights.airline_months (month, flights, cancelled, mean_departure_delay, miles)
SELECT %(month)s, count(*), count(*) FILTER (WHERE dep_time IS NULL), avg(dep_delay), coalesce(sum(distance), 0)
FROM flights.flight
WHERE carrier = %(airline)s AND flown_on >= %(month)s AND flown_on < %(month)s + interval '1 month'
"""


def airline_months(partition: Partition) -> None:
    """Compute one month of one airline anew; doing it twice gives the same row."""
    partition.connection.execute(FORGET, partition.values)
    partition.connection.execute(COMPUTE, partition.values)
