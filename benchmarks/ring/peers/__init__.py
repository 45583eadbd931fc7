"""The peers, each used as efficiently as its Python interface allows."""
