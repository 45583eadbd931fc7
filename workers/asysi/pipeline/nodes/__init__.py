"""Nodes: one operator between two streams, computed in blocks ahead and written in order."""
