"""Rows: their ids, their JSON, and the blocks in which they pass through a pipeline."""
