"""Text: rows of the data, the tokens they become, and the batches that a model reads."""
