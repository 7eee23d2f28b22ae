"""Benchmarks: each measures something against a named peer in the same run. None of them is a test."""
