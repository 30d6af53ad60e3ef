"""The script that trains ``gguf::demo``, the tiny model shipped with the package."""
