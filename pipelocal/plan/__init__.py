"""A training foretold: the cut, its times and its memory."""
