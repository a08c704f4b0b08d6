"""Kopf: an event becomes a key. Only this package imports Kopf."""
