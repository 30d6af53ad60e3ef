"""Entities in texts with the Vertex family."""
