"""A local server of Vertex AI's batches and of Cloud Storage, beside OpenAI's, that keeps the bill."""

from __future__ import annotations

import json
import time
from typing import Any, ClassVar

from skllm_ray.testing.batch_server import BatchServer
from skllm_ray.testing.chat_forms import vertex_form
from skllm_ray.testing.cloud_storage import CloudStorage
from skllm_ray.testing.provider_batches import ENDED, Batch, BatchFault
from skllm_ray.testing.script import StatusFault, prompt_of
from skllm_ray.testing.tuning_http import Response, error_response, json_response
from skllm_ray.testing.tuning_jobs import SubmitFault

_STATES = {
    "validating": "QUEUED", "in_progress": "RUNNING", "finalizing": "RUNNING", "completed": "SUCCEEDED",
    "cancelling": "CANCELLING", "cancelled": "CANCELLED", "expired": "EXPIRED", "failed": "FAILED",
}  # fmt: skip
_PARENT = r"/v1(?:beta1)?/projects/([^/]+)/locations/([^/]+)"
_JOB = r"/v1(?:beta1)?/(projects/[^/]+/locations/[^/]+/batchPredictionJobs/[^/:]+)"


class VertexBatchServer(BatchServer, CloudStorage):
    """Vertex AI's batches of Gemini models, their single requests, and Cloud Storage, on this machine.

    What is scripted, counted and charged is that of `BatchServer`; of its faults, those that Vertex AI can have.

    Attributes
    ----------
    objects : dict of str to bytes
        What Cloud Storage holds, by ``bucket/path``.
    buckets : dict of str to bool
        The buckets, and whether they may be written to.

    Examples
    --------
    >>> with VertexBatchServer() as server:
    ...     list(server.buckets)
    ['bucket']
    """

    routes: ClassVar[list[tuple[str, str, str]]] = [
        *BatchServer.routes,
        *CloudStorage.storage_routes,
        ("POST", _PARENT + "/batchPredictionJobs", "_create_vertex"),
        ("GET", _PARENT + "/batchPredictionJobs", "_list_vertex"),
        ("GET", _JOB, "_get_vertex"),
        ("POST", _JOB + ":cancel", "_cancel_vertex"),
        ("POST", _PARENT + r"/publishers/google/models/[^/:]+:generateContent", "_generate"),
    ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objects: dict[str, bytes] = {}
        self.buckets: dict[str, bool] = {"bucket": True}
        self.honours_preconditions = True
        self._generations: dict[str, int] = {}

    def _generate(self, project: str, location: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del project, location, query, headers
        status, told = self._answer_gemini(json.loads(body), "standard")
        return Response(status, json.dumps(told).encode())

    def _answer_gemini(self, body: dict[str, Any], tier: str) -> tuple[int, dict[str, Any]]:
        answer = self.answer(body)
        if isinstance(answer, StatusFault):
            return answer.status, {"error": {"code": answer.status, "message": answer.message, "status": answer.code}}
        told = vertex_form(body, str(answer), "stop")
        used = told["usageMetadata"]
        usage = {"prompt_tokens": used["promptTokenCount"], "completion_tokens": used["candidatesTokenCount"]}
        with self._lock:
            self.bill.add(tier, prompt_of(body), usage)
        return 200, told

    def _create_vertex(self, project: str, location: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers
        asked = json.loads(body)
        with self._lock:
            self.n_submissions += 1
            fault = self.submit_faults.popleft() if self.submit_faults else None
            data = self.objects.get(asked["inputConfig"]["gcsSource"]["uris"][0].removeprefix("gs://"))
            if data is None or fault is SubmitFault.REFUSED:
                return error_response(400, "The input cannot be used.")
            if fault is SubmitFault.DROP_BEFORE:
                return Response(200, b"", dropped=True)
            batch = self._take(asked, data, late=False)
            del self.batches[batch.id]
            batch.id = f"projects/{project}/locations/{location}/batchPredictionJobs/{len(self.batches) + 1}"
            self.batches[batch.id] = batch
        return Response(200, b"", dropped=True) if fault is SubmitFault.DROP_AFTER else json_response(_described(batch))

    def _list_vertex(self, project: str, location: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del project, location, query, headers, body
        with self._lock:
            return json_response({"batchPredictionJobs": [_described(one) for one in self.batches.values()][::-1]})

    def _get_vertex(self, name: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        with self._lock:
            batch = self.batches.get(name)
            if batch is None or batch.fault is BatchFault.DELETED:
                return error_response(404, "No such job")
            self._go_on(batch)
            return json_response(_described(batch))

    def _cancel_vertex(self, name: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        with self._lock:
            batch = self.batches[name]
            if batch.status in ENDED:
                return error_response(400, "The job has ended already.")
            batch.status = "cancelling"
        return json_response({})

    def _finish(self, batch: Batch) -> None:
        if "inputConfig" not in batch.body:
            super()._finish(batch)
            return
        cut = len(batch.lines) - int(self.expired_share * len(batch.lines))
        if batch.fault is BatchFault.EXPIRED or batch.status == "cancelling":
            cut //= 2
        told = []
        for line in batch.lines[:cut][::-1]:  # their order is not that of the requests
            status, body = self._answer_gemini(line["request"], "batch")
            good = status == 200
            batch.done, batch.failed = batch.done + good, batch.failed + (not good)
            told.append({
                "request": line["request"], "response": body if good else {},
                "status": "" if good else f"Error: {status} {body['error']['message']}",
            })  # fmt: skip
        folder = f"{_results(batch)}/prediction-model-1"
        self.objects[f"{folder}/predictions.jsonl"] = b"".join(json.dumps(one).encode() + b"\n" for one in told)
        self._generations[f"{folder}/predictions.jsonl"] = 1


def _results(batch: Batch) -> str:
    return str(batch.body["outputConfig"]["gcsDestination"]["outputUriPrefix"]).removeprefix("gs://")


def _described(batch: Batch) -> dict[str, Any]:
    """Return a batch as Vertex AI describes it."""
    ended = batch.status in ENDED - {"failed"}
    found = {
        **batch.body,
        "name": batch.id,
        "state": f"JOB_STATE_{_STATES[batch.status]}",
        "createTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch.created)),
        "completionStats": {"successfulCount": str(batch.done), "failedCount": str(batch.failed)},
        "outputInfo": {"gcsOutputDirectory": f"gs://{_results(batch)}/prediction-model-1"} if ended else None,
        "error": {"code": 3, "message": batch.errors[0]["message"]} if batch.errors else None,
    }
    return {name: value for name, value in found.items() if value is not None}
