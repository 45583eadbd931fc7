"""Capture: from the forward pass of a model into the capture ring, without the model noticing."""
