"""Many runs: seeds, tables, statistics, and the demo."""
