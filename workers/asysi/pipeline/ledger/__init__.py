"""The ledger: which source rows are committed, settled, or dead letters."""
