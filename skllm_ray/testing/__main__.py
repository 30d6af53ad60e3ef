"""``python -m skllm_ray.testing`` serves the fake chat server."""

from skllm_ray.testing.chat_server import main

main()
