"""Statistics of parameters: in one pass over a tensor, spectra, and what a parameter is by its name."""
