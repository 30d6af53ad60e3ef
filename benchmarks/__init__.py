"""Benchmarks: each measures its peers, the limit and ours in turn, in one run, and writes a table and JSON."""
