"""What every part of A-Sys-I agrees on: the experiment's spec and the pod's runtime.

Imports pydantic and YAML, nothing heavier.
"""
