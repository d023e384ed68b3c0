"""Who takes part in a run, and who is gone."""
