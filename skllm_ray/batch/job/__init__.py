"""A batch job from its options to its end: the driver, the workers, and what a screen shows."""
