"""Tasks: how texts become requests and replies become results.

A new task is a file here, a template in `prompts/templates.py`, and an estimator under `models/`. For the command line,
its name goes into `cli/job_file.py` (`Task`) and `cli/batch.py` (`_TASKS`), and what makes its estimator into
`cli/job_estimator.py` (`_MAKERS`).
"""

from skllm_ray.tasks.base import (
    ChatRequest,
    Choices,
    Embedding,
    ErrorKind,
    FollowUpTask,
    Message,
    PromptStyle,
    Reply,
    Row,
    RowError,
    Task,
    Usage,
)
from skllm_ray.tasks.classification import MultiLabelZeroShotTask, ZeroShotTask
from skllm_ray.tasks.cot import CoTTask, MultiLabelCoTTask
from skllm_ray.tasks.embedding import EmbeddingTask
from skllm_ray.tasks.extraction import ExtractionTask
from skllm_ray.tasks.few_shot import DynamicFewShotTask, FewShotTask, MultiLabelFewShotTask
from skllm_ray.tasks.ner import NERTask, Span, tagged, untagged
from skllm_ray.tasks.text import TextTask

__all__ = [
    "ChatRequest",
    "Choices",
    "CoTTask",
    "DynamicFewShotTask",
    "Embedding",
    "EmbeddingTask",
    "ErrorKind",
    "ExtractionTask",
    "FewShotTask",
    "FollowUpTask",
    "Message",
    "MultiLabelCoTTask",
    "MultiLabelFewShotTask",
    "MultiLabelZeroShotTask",
    "NERTask",
    "PromptStyle",
    "Reply",
    "Row",
    "RowError",
    "Span",
    "Task",
    "TextTask",
    "Usage",
    "ZeroShotTask",
    "tagged",
    "untagged",
]
