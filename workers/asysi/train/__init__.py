"""The training host: supervised training of a project that `asysi train new` writes.

A project states its task in `config.yaml` and in a package `train` (data set, processor, augmentation,
model). This package does the rest: loop, checkpoints, evaluation, report.
"""
