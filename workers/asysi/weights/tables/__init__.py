"""Tables of parameters: their columns, and files of them."""
