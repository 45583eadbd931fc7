"""A-Sys-I: a microscope for PyTorch models in motion."""

__version__ = "0.1.0"
