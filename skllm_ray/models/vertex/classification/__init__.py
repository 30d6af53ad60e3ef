"""Classifiers of the Vertex family."""
