"""Streams of rows (buses): where rows are read from and appended to, their seals, and a run's input files."""
