"""Streams of rows, which are read from and appended to, their seals, and a run's input files."""
