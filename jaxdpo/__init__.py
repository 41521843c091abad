"""Direct Preference Optimization in JAX: preference feedback in, an aligned model out."""
