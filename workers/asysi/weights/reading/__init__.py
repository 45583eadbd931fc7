"""Reading checkpoints: where their files lie, what is in them, and each tensor, lazily and by range."""
