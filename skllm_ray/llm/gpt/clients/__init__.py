"""Clients of the GPT family: OpenAI-compatible APIs and llama.cpp."""
