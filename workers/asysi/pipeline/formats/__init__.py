"""File formats: JSON lines, CSV and Parquet, compressed or not, and the URIs that name them."""
