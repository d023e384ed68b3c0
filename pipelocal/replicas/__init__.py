"""Several ranks that train the same stage, each on rows of its own."""
