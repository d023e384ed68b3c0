"""Predicts a training run: the cut, its times and its memory."""
