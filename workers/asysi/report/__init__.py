"""The report: one self-contained HTML page, made from typed data by a pure function."""
