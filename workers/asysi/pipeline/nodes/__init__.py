"""Nodes: one operator between two streams; blocks are computed ahead and written in order."""
