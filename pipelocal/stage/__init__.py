"""One gradient-isolated stage: the computation alone, without knowledge of ranks."""
