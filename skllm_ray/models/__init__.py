"""Estimators, at the paths that scikit-llm gives them."""
