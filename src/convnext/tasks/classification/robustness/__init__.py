"""Robustness of classifiers: published benchmarks, and corruptions generated here."""
