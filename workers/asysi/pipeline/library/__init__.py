"""Operators that come with the pipeline: `registry.make_operator` finds them by their names."""
