"""Tests of the folders of docs/gallery; its scripts are run by ``tests/test_gallery.py``."""
