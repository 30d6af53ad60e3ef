"""Reading a job's input: formats, types, and how files are cut into slices."""
