"""Packets and the buses that transport them."""
