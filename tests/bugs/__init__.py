"""Tests of defects that were found and mended, by kind; see ``tests/test_bugs.py``."""
