"""Runs that save by themselves."""
