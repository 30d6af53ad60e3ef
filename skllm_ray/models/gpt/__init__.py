"""Estimators of the GPT family."""
