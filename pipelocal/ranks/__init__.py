"""The ranks of a run: how they meet, and how a lost one is noticed."""
