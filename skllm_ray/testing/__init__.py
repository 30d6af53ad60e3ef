"""Fakes for tests: a chat server with faults on a real socket, a backend without one, and a local model that waits."""

from skllm_ray.testing.backend import FakeBackend, FakeSpec
from skllm_ray.testing.chat_server import ChatServer
from skllm_ray.testing.script import Answer, LabelAnswer, RawAnswer, Received, StatusFault, WireFault, prompt_of
from skllm_ray.testing.stand_in import StandInSpec, asked_calls, asked_rows
from skllm_ray.testing.token_model import TokenModel
from skllm_ray.testing.token_server import TokenServer

__all__ = [
    "Answer",
    "ChatServer",
    "FakeBackend",
    "FakeSpec",
    "LabelAnswer",
    "RawAnswer",
    "Received",
    "StandInSpec",
    "StatusFault",
    "TokenModel",
    "TokenServer",
    "WireFault",
    "asked_calls",
    "asked_rows",
    "prompt_of",
]
