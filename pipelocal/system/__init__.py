"""Helpers independent of torch: files, paths, streams, signals, clocks, quantities."""
