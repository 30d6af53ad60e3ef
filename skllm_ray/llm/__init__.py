"""Backends: the only package that imports an SDK."""
