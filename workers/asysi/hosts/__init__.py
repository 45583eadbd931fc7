"""Hosts run the model: they read text, make batches, and call its forward with capture attached."""
