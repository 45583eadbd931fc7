"""The HTML page on parameters: its plots and its number formatting."""
