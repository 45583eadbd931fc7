"""The page on parameters: its plots, and numbers as it shows them."""
