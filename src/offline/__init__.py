"""Offline data: read, validate, annotate with the behaviour policies, sample."""
