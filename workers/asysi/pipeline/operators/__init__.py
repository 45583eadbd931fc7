"""Operators: their interface, their lookup by name, and the detection of changes."""
