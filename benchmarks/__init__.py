"""Side-by-side measurements: ``python -m benchmarks``. Each prints ratios from one run."""
