"""The backends that speak OpenAI's API: OpenAI itself, Azure, and any server at a custom URL."""
