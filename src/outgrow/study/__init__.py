"""Many runs: methods x seeds, tables, statistics."""
