"""``python -m skllm_ray.cli`` is ``skllm-ray``."""

from skllm_ray.cli import main

main()
