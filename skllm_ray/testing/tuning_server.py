"""A local server of the tuning APIs, with faults, for tests of code that tunes models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["SubmitFault", "TuningServer"]


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
class _Job:
    name: str
    body: dict[str, Any]
    vertex: bool
    states: deque[str]
    created: float
    visible_at: float
    examples: dict[str, str] = field(default_factory=dict)


class TuningServer:
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
        self._jobs: dict[str, _Job] = {}
        self._generations: dict[str, int] = {}
        self._lock = threading.RLock()
        self._http = _Listener(("127.0.0.1", 0), _Handler)
        self._http.tuning = self
        self.root = f"http://127.0.0.1:{self._http.server_port}"
        self.url = f"{self.root}/v1"

    def __enter__(self) -> TuningServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def ids(self) -> list[str]:
        """The IDs of all jobs, oldest first."""
        return list(self._jobs)

    def delete_job(self, job_id: str) -> None:
        """Lose a job, as when somebody deletes it in the console."""
        del self._jobs[job_id]

    # --- the routes ---------------------------------------------------------------------------------------------

    def _answer(self, method: str, target: str, headers: Any, body: bytes) -> _Answer:
        parts = urlsplit(target)
        path, query = unquote(parts.path), {name: found[0] for name, found in parse_qs(parts.query).items()}
        for verb, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                answer: _Answer = getattr(self, handle)(*match.groups(), query=query, headers=headers, body=body)
                return answer
        return _error(404, f"no such path: {method} {path}")

    def _token(self, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        return _json({"access_token": "local", "token_type": "Bearer", "expires_in": 3600})

    def _permissions(self, bucket: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del headers, body
        if bucket not in self.buckets:
            return _error(404, "The specified bucket does not exist.")
        granted = [query["permissions"]] if self.buckets[bucket] else []
        return _json({"permissions": granted})

    def _put_object(self, bucket: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        if bucket not in self.buckets:
            return _error(404, "The specified bucket does not exist.")
        if not self.buckets[bucket]:
            return _error(403, "The caller does not have storage.objects.create access.")
        meta, content = _multipart(headers["content-type"], body)
        name = f"{bucket}/{meta['name']}"
        if meta.get("crc32c") not in {None, _crc32c(content)}:
            return _error(400, "The checksum does not match.")
        with self._lock:
            if self.honours_preconditions and query.get("ifGenerationMatch") == "0" and name in self.objects:
                return _error(412, "At least one of the pre-conditions you specified did not hold.")
            self.objects[name] = content
            self._generations[name] = self._generations.get(name, 0) + 1
        return _json(self._object(name))

    def _object(self, name: str) -> dict[str, Any]:
        bucket, _, path = name.partition("/")
        content = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": path,
            "generation": str(self._generations[name]),
            "size": str(len(content)),
            "crc32c": _crc32c(content),
        }

    def _get_object(self, bucket: str, path: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del headers, body
        name = f"{bucket}/{path}"
        if name not in self.objects:
            return _error(404, "No such object")
        return _Answer(200, self.objects[name]) if query.get("alt") == "media" else _json(self._object(name))

    def _delete_object(self, bucket: str, path: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        if self.objects.pop(f"{bucket}/{path}", None) is None:
            return _error(404, "No such object")
        return _Answer(204, b"")

    def _list_objects(self, bucket: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del headers, body
        if bucket not in self.buckets:
            return _error(404, "The specified bucket does not exist.")
        prefix = f"{bucket}/{query.get('prefix', '')}"
        return _json({"items": [self._object(name) for name in sorted(self.objects) if name.startswith(prefix)]})

    def _submit_vertex(self, project: str, location: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers
        asked = json.loads(body)
        uri = asked["supervisedTuningSpec"]["trainingDatasetUri"].removeprefix("gs://")
        with self._lock:
            data = self.objects.get(uri)
            name = f"projects/{project}/locations/{location}/tuningJobs/{len(self._jobs) + 1}"
        return self._submit(_new_job(self, name, asked, vertex=True), data)

    def _submit_openai(self, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers
        asked = json.loads(body)
        if not self.keeps_metadata:
            asked.pop("metadata", None)
        with self._lock:
            data = self.files.get(asked["training_file"], ("", None))[1]
        return self._submit(_new_job(self, f"ftjob-{len(self._jobs) + 1}", asked, vertex=False), data)

    def _submit(self, job: _Job, data: bytes | None) -> _Answer:
        with self._lock:
            self.n_submissions += 1
            fault = self.faults.popleft() if self.faults else None
            if self.denied or fault is SubmitFault.FORBIDDEN:
                return _error(403, "The caller does not have permission")
            if data is None or fault is SubmitFault.REFUSED:
                return _error(400, "The training data cannot be used.")
            if fault is SubmitFault.DROP_BEFORE:
                return _Answer(200, b"", dropped=True)
            if fault is SubmitFault.ERROR_BEFORE:
                return _error(503, "Try again later.")
            job.examples = dict(map(_example, data.splitlines()))
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
            return _Answer(200, b"", dropped=True)
        if fault is SubmitFault.ERROR_AFTER:
            return _error(503, "Try again later.")
        if fault is SubmitFault.HTML_AFTER:
            return _Answer(200, b"<html>Sign in</html>", "text/html")
        return _json(described)

    def _list_vertex(self, project: str, location: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        if self.denied:
            return _error(403, "The caller does not have permission")
        prefix = f"projects/{project}/locations/{location}/"
        return _json({"tuningJobs": [self._describe(job) for job in self._visible() if job.name.startswith(prefix)]})

    def _list_openai(self, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del headers, body
        if self.denied:
            return _error(403, "You have insufficient permissions for this operation.")
        jobs = [job for job in self._visible() if not job.vertex][::-1]
        after, limit = query.get("after"), int(query.get("limit", 20))
        names = [job.name for job in jobs]
        start = names.index(after) + 1 if after in names else 0
        page = jobs[start : start + limit]
        found = [self._describe(job) for job in page]
        return _json({"object": "list", "data": found, "has_more": start + limit < len(jobs)})

    def _visible(self) -> list[_Job]:
        with self._lock:
            return [job for job in self._jobs.values() if job.visible_at <= time.monotonic()]

    def _get_job(self, name: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        with self._lock:
            self.n_looks += 1
            job = self._jobs.get(name)
            if job is None:
                return _error(404, "No such job")
            described = self._describe(job)
            if len(job.states) > 1:
                job.states.popleft()
        return _json(described)

    def _cancel(self, name: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        with self._lock:
            job = self._jobs.get(name)
            if job is None:
                return _error(404, "No such job")
            if job.states[0] in {"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"}:
                return _error(400, "The job has ended already.")
            job.states = deque(["CANCELLING", "CANCELLED"] if job.vertex else ["CANCELLED"])
            return _json({} if job.vertex else self._describe(job))

    def _describe(self, job: _Job) -> dict[str, Any]:
        state = job.states[0]
        done = state in {"SUCCEEDED", "PARTIALLY_SUCCEEDED"} and self.gives_models
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(job.created))
        number = re.split(r"[/-]", job.name)[-1]
        broken = {"code": 3, "message": "The training failed."} if state in {"FAILED", "EXPIRED"} else None
        if job.vertex:
            parent = job.name.rpartition("/tuningJobs/")[0]
            tuned = {"model": f"{parent}/models/{number}@1", "endpoint": f"{parent}/endpoints/{number}"}
            found = {
                **job.body,
                "name": job.name,
                "state": f"JOB_STATE_{state}",
                "createTime": stamp,
                "tuningDataStats": {"supervisedTuningDataStats": {"totalBillableTokenCount": "1234"}} if done else None,
                "tunedModel": tuned if done else None,
                "error": broken,
            }
            return {name: value for name, value in found.items() if value is not None}
        names = {"PENDING": "validating_files"}
        return {
            "id": job.name,
            "object": "fine_tuning.job",
            "created_at": int(job.created),
            "finished_at": int(time.time()) if done else None,
            "fine_tuned_model": f"ft:{job.body['model']}:org:{job.body.get('suffix', '')}:{number}" if done else None,
            "hyperparameters": {"n_epochs": "auto"},
            "model": job.body["model"],
            "organization_id": "org",
            "result_files": [],
            "seed": 0,
            "status": names.get(state, state.lower()),
            "trained_tokens": 1234 if done else None,
            "training_file": job.body["training_file"],
            "validation_file": None,
            "metadata": job.body.get("metadata"),
            "method": job.body.get("method"),
            "error": {"code": "failed", "message": broken["message"]} if broken else None,
        }

    def _put_file(self, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query
        name, content = _form_file(headers["content-type"], body)
        with self._lock:
            file_id = f"file-{len(self.files) + 1}-{hashlib.sha256(content).hexdigest()[:6]}"
            self.files[file_id] = (name, content)
        return _json(self._file(file_id))

    def _file(self, file_id: str) -> dict[str, Any]:
        name, content = self.files[file_id]
        return {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": 0,
            "filename": name,
            "purpose": "fine-tune",
            "status": "processed",
        }

    def _list_files(self, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        return _json({"object": "list", "data": [self._file(file_id) for file_id in self.files], "has_more": False})

    def _get_file(self, file_id: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        return _json(self._file(file_id)) if file_id in self.files else _error(404, "No such file")

    def _file_content(self, file_id: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        return _Answer(200, self.files[file_id][1], "application/octet-stream")

    def _delete_file(self, file_id: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers, body
        if self.files.pop(file_id, None) is None:
            return _error(404, "No such file")
        return _json({"id": file_id, "object": "file", "deleted": True})

    def _chat(self, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers
        asked = json.loads(body)
        number = asked["model"].rpartition(":")[2]
        text = self._predict(f"ftjob-{number}", asked["messages"][-1]["content"])
        if text is None:
            return _error(404, f"The model {asked['model']} does not exist.")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return _json({
            "id": "chatcmpl-0", "object": "chat.completion", "created": 0,
            "model": asked["model"], "choices": [choice], "usage": usage,
        })  # fmt: skip

    def _generate(self, endpoint: str, *, query: Any, headers: Any, body: bytes) -> _Answer:
        del query, headers
        text = self._predict(
            endpoint.replace("/endpoints/", "/tuningJobs/"), json.loads(body)["contents"][-1]["parts"][0]["text"]
        )
        if text is None:
            return _error(404, "No such endpoint")
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}
        return _json({"candidates": [candidate], "modelVersion": "tuned"})

    def _predict(self, name: str, prompt: str) -> str | None:
        """Return what the model of a finished job answers."""
        job = self._jobs.get(name)
        if job is None or job.states[0] not in {"SUCCEEDED", "PARTIALLY_SUCCEEDED"}:
            return None
        self.n_predictions += 1
        return job.examples.get(prompt) or Counter(job.examples.values()).most_common(1)[0][0]


_PARENT = r"/v1(?:beta1)?/projects/([^/]+)/locations/([^/]+)"
_JOB = r"/v1(?:beta1)?/(projects/[^/]+/locations/[^/]+/tuningJobs/[^/:]+)"
_OPENAI = r"/(?:v1|openai)"
_ROUTES = [
    ("POST", r"/token", "_token"),
    ("GET", r"/storage/v1/b/([^/]+)/iam/testPermissions", "_permissions"),
    ("POST", r"/upload/storage/v1/b/([^/]+)/o", "_put_object"),
    ("GET", r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)", "_get_object"),
    ("GET", r"/storage/v1/b/([^/]+)/o", "_list_objects"),
    ("DELETE", r"/storage/v1/b/([^/]+)/o/(.+)", "_delete_object"),
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


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = "application/json"
    dropped: bool = False


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    tuning: TuningServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep the tests' output clean when a client dies."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
        """Keep the tests' output clean."""

    def _serve(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        answer = self.server.tuning._answer(method, self.path, self.headers, body)
        try:
            if answer.dropped:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("content-type", answer.content_type)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
        except OSError:  # the client went away
            self.close_connection = True


def _new_job(server: TuningServer, name: str, body: dict[str, Any], *, vertex: bool) -> _Job:
    return _Job(name, body, vertex, deque(server.states), time.time(), time.monotonic())


def _json(value: dict[str, Any]) -> _Answer:
    return _Answer(200, json.dumps(value).encode())


def _error(status: int, message: str) -> _Answer:
    return _Answer(status, json.dumps({"error": {"code": status, "message": message, "status": str(status)}}).encode())


def _example(line: bytes) -> tuple[str, str]:
    """Return the last question of an example, and its answer."""
    example = json.loads(line)
    if "messages" in example:
        texts = [message["content"] for message in example["messages"]]
    else:
        texts = [turn["parts"][0]["text"] for turn in example["contents"]]
    return texts[-2], texts[-1]


def _multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the metadata and the content of a ``multipart/related`` upload."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').strip("'").encode()
    _, meta, content, _ = body.split(boundary, 3)
    found: dict[str, Any] = json.loads(meta.partition(b"\r\n\r\n")[2])
    return found, content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")


def _form_file(content_type: str, body: bytes) -> tuple[str, bytes]:
    """Return the name and the content of the file in a ``multipart/form-data`` upload."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    for part in body.split(boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'filename="([^"]*)"', head)
        if name:
            return name[1].decode(), content.removesuffix(b"\r\n")
    return "", b""


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc32c_table()


def _crc32c(content: bytes) -> str:
    """Return the CRC32C of `content` as Cloud Storage writes it."""
    value = 0xFFFFFFFF
    for byte in content:
        value = (value >> 8) ^ _TABLE[(value ^ byte) & 0xFF]
    return base64.b64encode(struct.pack(">I", value ^ 0xFFFFFFFF)).decode()
