"""Tasks: how texts become requests and replies become results."""

from skllm_ray.tasks.base import ChatRequest, Choices, Embedding, ErrorKind, Message, Reply, Row, RowError, Task, Usage
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask

__all__ = [
    "ChatRequest",
    "Choices",
    "Embedding",
    "ErrorKind",
    "Message",
    "MultiLabelZeroShotTask",
    "Reply",
    "Row",
    "RowError",
    "Task",
    "Usage",
    "ZeroShotTask",
]
