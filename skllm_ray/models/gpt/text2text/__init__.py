"""Text to text with the GPT family."""
