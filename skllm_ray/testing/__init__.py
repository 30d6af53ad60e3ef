"""Fakes for tests: a chat server with faults on a real socket, and a backend without one."""

from skllm_ray.testing.backend import FakeBackend, FakeSpec
from skllm_ray.testing.chat_server import ChatServer
from skllm_ray.testing.script import Answer, RawAnswer, Received, StatusFault, WireFault, prompt_of

__all__ = [
    "Answer",
    "ChatServer",
    "FakeBackend",
    "FakeSpec",
    "RawAnswer",
    "Received",
    "StatusFault",
    "WireFault",
    "prompt_of",
]
