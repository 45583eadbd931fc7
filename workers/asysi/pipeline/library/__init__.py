"""Built-in operators of the pipeline; `registry.make_operator` looks them up by name."""
