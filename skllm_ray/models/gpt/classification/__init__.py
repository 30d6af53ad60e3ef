"""Classifiers of the GPT family."""
