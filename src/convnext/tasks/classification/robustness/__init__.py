"""How well a classifier holds up: published robustness benchmarks, and corruptions made here."""
