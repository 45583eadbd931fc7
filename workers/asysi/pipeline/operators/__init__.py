"""Operators: what a node does to its rows, how one is named, and how a changed one is recognised."""
