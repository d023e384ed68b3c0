"""``pipelocal doctor``: checks the ranks for problems before training."""
