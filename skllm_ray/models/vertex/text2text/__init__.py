"""Text to text with the Vertex family."""
