"""`kubectl asysi` and `asysi cluster`: what a user does with an experiment after `kubectl apply`.

Everything goes through the kubectl binary: its contexts, its ways to log in, its proxies and its permissions
are the user's own, and it carries streams in and out of pods. `kubectl` is the edge; `access`, `diagnosis`,
`seen` and `files_pod` are pure.
"""
