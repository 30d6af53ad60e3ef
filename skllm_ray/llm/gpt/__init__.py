"""Backends of the GPT family."""
