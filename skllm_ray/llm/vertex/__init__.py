"""The backend for Gemini on Vertex AI."""
