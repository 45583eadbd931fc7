"""Reading checkpoints: locating their files, parsing headers, and reading tensors lazily and by range."""
