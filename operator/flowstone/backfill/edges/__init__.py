"""What the reconcile of a backfill does to the world, one collaborator a file."""
