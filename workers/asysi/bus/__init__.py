"""Packets and the buses that carry them."""
