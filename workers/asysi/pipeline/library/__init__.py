"""Operators that come with the pipeline: `registry.make` finds them by their names."""
