"""The end of an experiment: wait for the consumers, balance the books, look at the latents, write the
report.
"""
