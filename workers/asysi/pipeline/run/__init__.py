"""Runs of a pipeline: blueprint, state on disk, shards, and telemetry."""
