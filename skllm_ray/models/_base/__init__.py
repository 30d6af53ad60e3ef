"""The estimators' bases."""
