"""Entities in texts with the GPT family."""
