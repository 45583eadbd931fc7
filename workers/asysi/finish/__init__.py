"""The end of an experiment: wait for the consumers, balance the ledger, analyse the latents, write the
report.
"""
