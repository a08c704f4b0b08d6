"""The story of a backfill.

    plan -> (ledger rows) -> sizing, claim -> (Job) -> outcome -> standing -> status

`plan` turns resources into a set of partitions, `sizing` says how many make a batch, `outcome` says what becomes
of a batch's rows once its run is known, `standing` names the state the whole is in, `status` writes that down for
people and tools. All of these are pure. `reconcile` is the one asynchronous file: it reads, asks them, acts, and
may be killed between any two lines.
"""
