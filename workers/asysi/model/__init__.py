"""Models: where they come from, how they are built and called, and how their modules are named."""
