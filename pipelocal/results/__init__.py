"""Uses the results of a run: evaluation, export and loading."""
