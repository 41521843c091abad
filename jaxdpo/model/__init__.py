"""The decoder: configuration, layers, attention, LoRA and cache; pure functions of arrays."""
