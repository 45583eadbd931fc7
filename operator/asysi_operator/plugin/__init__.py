"""`kubectl asysi` and `asysi cluster`: user commands for an experiment after `kubectl apply`.

All requests go through the kubectl binary, so that the user's contexts, authentication, proxies and
permissions apply; it also streams data into and out of pods. `kubectl` does the I/O; `access`, `diagnosis`,
`experiment_view` and `files_pod` are pure.
"""
