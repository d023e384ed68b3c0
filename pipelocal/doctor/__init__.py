"""``pipelocal doctor``: what could go wrong on these ranks, looked at before training."""
