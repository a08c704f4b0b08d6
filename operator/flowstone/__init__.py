"""FlowStone runs an asset over many partitions, and keeps every tenant's data apart in Postgres."""
