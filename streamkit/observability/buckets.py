"""Where latencies and sizes are cut into buckets; counted by whoever does the work, shown by `metrics`."""

# Upper bounds in seconds; what lies above the last is counted too.
LATENCY_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Of numbers of records or bytes.
SIZE_BOUNDS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0)
