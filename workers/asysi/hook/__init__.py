"""The hook worker: drains the capture ring into the bus, and sets the sampling rate."""
