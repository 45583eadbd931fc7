"""The peers, each used as well as its Python interface allows."""
