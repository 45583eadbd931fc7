"""Hosts run the model: each calls its forward on its own terms, with capture attached."""
