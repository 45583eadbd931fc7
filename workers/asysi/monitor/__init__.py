"""Health, metrics and status of a worker, and the frame that every worker runs in."""
