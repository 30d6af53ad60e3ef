"""What is told before, about and after a job: estimates, evaluations, reports."""
