"""The adapter to the Kubernetes API: plain dicts in and out, errors translated."""
