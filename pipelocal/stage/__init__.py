"""One gradient-isolated stage: what is computed, and knows no ranks."""
