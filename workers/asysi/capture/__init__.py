"""Capture: copies activations from a model's forward pass to the capture ring, invisible to the model."""
