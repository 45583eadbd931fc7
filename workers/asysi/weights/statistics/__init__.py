"""Statistics of parameters: one-pass statistics, spectra, and classification by name."""
