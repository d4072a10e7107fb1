"""Networks as pure functions: frozen values with `init(stream) -> params` and `apply(params, x) -> logits`."""
