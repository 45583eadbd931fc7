"""Hosts run the model: each calls its forward pass in its own loop, with capture attached."""
