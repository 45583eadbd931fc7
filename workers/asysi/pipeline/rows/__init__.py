"""Rows: their ids, their JSON, and the blocks in which a pipeline processes them."""
