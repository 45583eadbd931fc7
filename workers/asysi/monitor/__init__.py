"""Health, metrics and status of workers, and the process frame of every worker."""
