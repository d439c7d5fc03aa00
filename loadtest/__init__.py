"""Load, and what serving costs: made-up traffic, a locustfile, and the benchmark against the floor."""
