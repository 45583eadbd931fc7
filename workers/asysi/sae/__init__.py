"""Sparse autoencoders, trained on the live stream of activations."""
