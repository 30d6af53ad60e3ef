"""Writing a job's output: parts, the journal, the budget, the lock and the manifest."""
