"""In what order things happen: the stream of events and how each stage meets it."""
