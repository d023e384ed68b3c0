"""The pipeline: the stream of events, and how each stage processes it."""
