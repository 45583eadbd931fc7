"""Tables of parameters: their columns and their files."""
