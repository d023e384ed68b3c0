"""What the process meets outside of torch: files, paths, streams, signals, clocks, quantities."""
