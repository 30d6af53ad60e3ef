"""Ray: the only package that imports it. See ``runner.run`` for the path of a call."""
