"""Estimators of the Vertex family."""
