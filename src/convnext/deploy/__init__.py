"""Fast inference with trained networks: folded, compiled, quantized, exported."""
