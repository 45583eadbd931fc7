"""The contract between all parts of A-Sys-I: the experiment's spec and the pod's runtime.

Imports only pydantic and YAML, no heavier dependencies.
"""
