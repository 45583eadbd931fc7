"""The operator: an experiment's manifests, and the same pod as local processes."""
