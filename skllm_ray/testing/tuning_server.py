"""A local server of the tuning APIs, with faults, for tests of code that tunes models."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from typing import Any, ClassVar

from skllm_ray.testing.cloud_storage import CloudStorage
from skllm_ray.testing.openai_files import OpenAIFiles
from skllm_ray.testing.tuning_http import Response, Routed, error_response, json_response
from skllm_ray.testing.tuning_jobs import SubmitFault, TunedJob, example_of

__all__ = ["SubmitFault", "TuningServer"]


_PARENT = r"/v1(?:beta1)?/projects/([^/]+)/locations/([^/]+)"
_JOB = r"/v1(?:beta1)?/(projects/[^/]+/locations/[^/]+/tuningJobs/[^/:]+)"
_OPENAI = r"/(?:v1|openai)"


class TuningServer(Routed, CloudStorage, OpenAIFiles):
    """Vertex AI's tuning jobs, Cloud Storage, and OpenAI's files and fine-tuning, on this machine.

    A job goes on one state with every look at it. Its model has really learnt: it answers what the data set that was
    uploaded says, and, for texts that it does not hold, the most frequent answer.

    Parameters
    ----------
    states : sequence of str, default=("PENDING", "RUNNING", "SUCCEEDED")
        The states of every new job, by Vertex AI's names without ``JOB_STATE_``; the last one stays.

    Attributes
    ----------
    root : str
        The base URL for Vertex AI, Cloud Storage (``STORAGE_EMULATOR_HOST``), Azure and OAuth tokens (``/token``).
    url : str
        The OpenAI-compatible base URL; it ends in ``/v1``.
    faults : deque of SubmitFault
        What happens to the next submissions, one each.
    n_submissions : int
        Requests to submit a job that arrived.
    n_jobs : int
        Jobs that were taken, which is what costs money.
    objects : dict of str to bytes
        What Cloud Storage holds, by ``bucket/path``.
    buckets : dict of str to bool
        The buckets, and whether they may be written to.
    files : dict of str to (str, bytes)
        OpenAI's files by ID: name and content.
    denied : bool
        Whether tuning jobs may be neither listed nor submitted.
    gives_models : bool
        Whether jobs that succeed have a model.
    keeps_metadata : bool
        Whether the metadata of OpenAI's jobs is kept.
    honours_preconditions : bool
        Whether Cloud Storage honours ``ifGenerationMatch=0``.
    n_looks, n_predictions : int
        Looks at single jobs; answers of tuned models.

    Examples
    --------
    >>> with TuningServer() as server:
    ...     server.n_jobs
    0
    """

    routes: ClassVar[list[tuple[str, str, str]]] = [
        *CloudStorage.storage_routes,
        ("POST", _PARENT + "/tuningJobs", "_submit_vertex"),
        ("GET", _PARENT + "/tuningJobs", "_list_vertex"),
        ("GET", _JOB, "_get_job"),
        ("POST", _JOB + ":cancel", "_cancel"),
        ("POST", r"/v1(?:beta1)?/(projects/[^/]+/locations/[^/]+/endpoints/[^/:]+):generateContent", "_generate"),
        ("POST", _OPENAI + "/files", "_put_file"),
        ("GET", _OPENAI + "/files", "_list_files"),
        ("GET", _OPENAI + "/files/([^/]+)", "_get_file"),
        ("GET", _OPENAI + "/files/([^/]+)/content", "_file_content"),
        ("DELETE", _OPENAI + "/files/([^/]+)", "_delete_file"),
        ("POST", _OPENAI + "/fine_tuning/jobs", "_submit_openai"),
        ("GET", _OPENAI + "/fine_tuning/jobs", "_list_openai"),
        ("GET", _OPENAI + "/fine_tuning/jobs/([^/]+)", "_get_job"),
        ("POST", _OPENAI + "/fine_tuning/jobs/([^/]+)/cancel", "_cancel"),
        ("POST", _OPENAI + "(?:/deployments/[^/]+)?/chat/completions", "_chat"),
    ]

    def __init__(self, states: tuple[str, ...] = ("PENDING", "RUNNING", "SUCCEEDED")) -> None:
        self.states = states
        self.faults: deque[SubmitFault] = deque()
        self.late_s = 1.0
        self.slow_s = 1.0
        self.n_submissions = 0
        self.n_jobs = 0
        self.n_looks = 0
        self.objects: dict[str, bytes] = {}
        self.buckets: dict[str, bool] = {"bucket": True}
        self.files: dict[str, tuple[str, bytes]] = {}
        self.denied = False
        self.gives_models = True
        self.keeps_metadata = True
        self.honours_preconditions = True
        self.n_predictions = 0
        self._jobs: dict[str, TunedJob] = {}
        self._generations: dict[str, int] = {}
        self._lock = threading.RLock()
        self._listen()

    @property
    def ids(self) -> list[str]:
        """The IDs of all jobs, oldest first."""
        return list(self._jobs)

    def delete_job(self, job_id: str) -> None:
        """Lose a job, as when somebody deletes it in the console."""
        del self._jobs[job_id]

    # --- the routes ---------------------------------------------------------------------------------------------

    def _submit_vertex(self, project: str, location: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers
        asked = json.loads(body)
        uri = asked["supervisedTuningSpec"]["trainingDatasetUri"].removeprefix("gs://")
        with self._lock:
            data = self.objects.get(uri)
            name = f"projects/{project}/locations/{location}/tuningJobs/{len(self._jobs) + 1}"
        return self._submit(_new_job(self, name, asked, vertex=True), data)

    def _submit_openai(self, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers
        asked = json.loads(body)
        if not self.keeps_metadata:
            asked.pop("metadata", None)
        with self._lock:
            data = self.files.get(asked["training_file"], ("", None))[1]
        return self._submit(_new_job(self, f"ftjob-{len(self._jobs) + 1}", asked, vertex=False), data)

    def _submit(self, job: TunedJob, data: bytes | None) -> Response:
        with self._lock:
            self.n_submissions += 1
            fault = self.faults.popleft() if self.faults else None
            if self.denied or fault is SubmitFault.FORBIDDEN:
                return error_response(403, "The caller does not have permission")
            if data is None or fault is SubmitFault.REFUSED:
                return error_response(400, "The training data cannot be used.")
            if fault is SubmitFault.DROP_BEFORE:
                return Response(200, b"", dropped=True)
            if fault is SubmitFault.ERROR_BEFORE:
                return error_response(503, "Try again later.")
            job.examples = dict(map(example_of, data.splitlines()))
            if fault is SubmitFault.LATE:
                job.visible_at = time.monotonic() + self.late_s
            while job.name in self._jobs:  # another one was faster
                head, _, number = job.name.rpartition("/" if job.vertex else "-")
                job.name = f"{head}{'/' if job.vertex else '-'}{int(number) + 1}"
            self._jobs[job.name] = job
            self.n_jobs += 1
            described = self._describe(job)
        if fault is SubmitFault.SLOW:
            time.sleep(self.slow_s)
        if fault in {SubmitFault.DROP_AFTER, SubmitFault.LATE}:
            return Response(200, b"", dropped=True)
        if fault is SubmitFault.ERROR_AFTER:
            return error_response(503, "Try again later.")
        if fault is SubmitFault.HTML_AFTER:
            return Response(200, b"<html>Sign in</html>", "text/html")
        return json_response(described)

    def _list_vertex(self, project: str, location: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        if self.denied:
            return error_response(403, "The caller does not have permission")
        prefix = f"projects/{project}/locations/{location}/"
        return json_response(
            {"tuningJobs": [self._describe(job) for job in self._visible() if job.name.startswith(prefix)]}
        )

    def _list_openai(self, *, query: Any, headers: Any, body: bytes) -> Response:
        del headers, body
        if self.denied:
            return error_response(403, "You have insufficient permissions for this operation.")
        jobs = [job for job in self._visible() if not job.vertex][::-1]
        after, limit = query.get("after"), int(query.get("limit", 20))
        names = [job.name for job in jobs]
        start = names.index(after) + 1 if after in names else 0
        page = jobs[start : start + limit]
        found = [self._describe(job) for job in page]
        return json_response({"object": "list", "data": found, "has_more": start + limit < len(jobs)})

    def _visible(self) -> list[TunedJob]:
        with self._lock:
            return [job for job in self._jobs.values() if job.visible_at <= time.monotonic()]

    def _get_job(self, name: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        with self._lock:
            self.n_looks += 1
            job = self._jobs.get(name)
            if job is None:
                return error_response(404, "No such job")
            described = self._describe(job)
            if len(job.states) > 1:
                job.states.popleft()
        return json_response(described)

    def _cancel(self, name: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        with self._lock:
            job = self._jobs.get(name)
            if job is None:
                return error_response(404, "No such job")
            if job.states[0] in {"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}:
                return error_response(400, "The job has ended already.")
            job.states = deque(["CANCELLING", "CANCELLED"] if job.vertex else ["CANCELLED"])
            return json_response({} if job.vertex else self._describe(job))

    def _describe(self, job: TunedJob) -> dict[str, Any]:
        return job.described(gives_models=self.gives_models)

    def _chat(self, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers
        asked = json.loads(body)
        number = asked["model"].rpartition(":")[2]
        text = self._predict(f"ftjob-{number}", asked["messages"][-1]["content"])
        if text is None:
            return error_response(404, f"The model {asked['model']} does not exist.")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return json_response({
            "id": "chatcmpl-0", "object": "chat.completion", "created": 0,
            "model": asked["model"], "choices": [choice], "usage": usage,
        })  # fmt: skip

    def _generate(self, endpoint: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers
        text = self._predict(
            endpoint.replace("/endpoints/", "/tuningJobs/"), json.loads(body)["contents"][-1]["parts"][0]["text"]
        )
        if text is None:
            return error_response(404, "No such endpoint")
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}
        return json_response({"candidates": [candidate], "modelVersion": "tuned"})

    def _predict(self, name: str, prompt: str) -> str | None:
        """Return what the model of a finished job answers."""
        job = self._jobs.get(name)
        if job is None or job.states[0] not in {"SUCCEEDED", "PARTIALLY_SUCCEEDED"}:
            return None
        self.n_predictions += 1
        return job.examples.get(prompt) or Counter(job.examples.values()).most_common(1)[0][0]


def _new_job(server: TuningServer, name: str, body: dict[str, Any], *, vertex: bool) -> TunedJob:
    return TunedJob(name, body, vertex, deque(server.states), time.time(), time.monotonic())
