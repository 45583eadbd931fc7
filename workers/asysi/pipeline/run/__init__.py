"""Runs of a pipeline: its blueprint, its state on disk, its shards, and what it reports."""
