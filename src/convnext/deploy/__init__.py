"""The fast forms of a trained network: folded, compiled, quantised, exported."""
