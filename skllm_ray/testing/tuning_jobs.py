"""The jobs of the fake tuning server: how submitting one may fail, and how the APIs describe it."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class SubmitFault(Enum):
    """What happens to the request that submits a job."""

    DROP_BEFORE = "the connection is closed, and nothing was taken"
    DROP_AFTER = "the job is taken, and the connection is closed"
    ERROR_BEFORE = "status 503, and nothing was taken"
    ERROR_AFTER = "the job is taken, and the answer is status 503"
    HTML_AFTER = "the job is taken, and the answer is a web page"
    LATE = "the job is taken and the connection closed; lists show the job only after `late_s`"
    SLOW = "the job is taken, and the answer comes after `slow_s`"
    REFUSED = "status 400, and nothing was taken"
    FORBIDDEN = "status 403, and nothing was taken"


@dataclass
class TunedJob:
    """A job that was taken."""

    name: str
    body: dict[str, Any]
    vertex: bool
    states: deque[str]
    created: float
    visible_at: float
    examples: dict[str, str] = field(default_factory=dict)

    def described(self, *, gives_models: bool) -> dict[str, Any]:
        """Return the job as its API describes it."""
        state = self.states[0]
        done = state in {"SUCCEEDED", "PARTIALLY_SUCCEEDED"} and gives_models
        number = re.split(r"[/-]", self.name)[-1]
        broken = {"code": 3, "message": "The training failed."} if state in {"FAILED", "EXPIRED"} else None
        form = self._as_vertex if self.vertex else self._as_openai
        return form(state, done, number, broken)

    def _as_vertex(self, state: str, done: bool, number: str, broken: dict[str, Any] | None) -> dict[str, Any]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created))
        parent = self.name.rpartition("/tuningJobs/")[0]
        tuned = {"model": f"{parent}/models/{number}@1", "endpoint": f"{parent}/endpoints/{number}"}
        found = {
            **self.body,
            "name": self.name,
            "state": f"JOB_STATE_{state}",
            "createTime": stamp,
            "tuningDataStats": {"supervisedTuningDataStats": {"totalBillableTokenCount": "1234"}} if done else None,
            "tunedModel": tuned if done else None,
            "error": broken,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _as_openai(self, state: str, done: bool, number: str, broken: dict[str, Any] | None) -> dict[str, Any]:
        names = {"PENDING": "validating_files"}
        return {
            "id": self.name,
            "object": "fine_tuning.job",
            "created_at": int(self.created),
            "finished_at": int(time.time()) if done else None,
            "fine_tuned_model": f"ft:{self.body['model']}:org:{self.body.get('suffix', '')}:{number}" if done else None,
            "hyperparameters": {"n_epochs": "auto"},
            "model": self.body["model"],
            "organization_id": "org",
            "result_files": [],
            "seed": 0,
            "status": names.get(state, state.lower()),
            "trained_tokens": 1234 if done else None,
            "training_file": self.body["training_file"],
            "validation_file": None,
            "metadata": self.body.get("metadata"),
            "method": self.body.get("method"),
            "error": {"code": "failed", "message": broken["message"]} if broken else None,
        }


def example_of(line: bytes) -> tuple[str, str]:
    """Return the last question of an example, and its answer."""
    example = json.loads(line)
    if "messages" in example:
        texts = [message["content"] for message in example["messages"]]
    else:
        texts = [turn["parts"][0]["text"] for turn in example["contents"]]
    return texts[-2], texts[-1]
