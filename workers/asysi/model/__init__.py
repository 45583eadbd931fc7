"""Models: resolving, building and calling them, and naming their modules."""
