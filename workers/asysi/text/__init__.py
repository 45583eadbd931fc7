"""Text: reading rows, tokenising them, and building batches for the model."""
