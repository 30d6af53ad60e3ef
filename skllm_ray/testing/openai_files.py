"""The part of the fake tuning server that is OpenAI's files."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

from skllm_ray.testing.tuning_http import Response, error_response, json_response
from skllm_ray.testing.uploads import form_file


class OpenAIFiles:
    """Files, as OpenAI's API has them."""

    purpose = "fine-tune"
    """What all files are for."""
    files: dict[str, tuple[str, bytes]]
    _n_uploads = 0
    _lock: threading.RLock

    def _put_file(self, *, query: Any, headers: Any, body: bytes) -> Response:
        del query
        name, content = form_file(headers["content-type"], body)
        with self._lock:
            self._n_uploads += 1
            file_id = f"file-{self._n_uploads}-{hashlib.sha256(content).hexdigest()[:6]}"
            self.files[file_id] = (name, content)
        return json_response(self._file(file_id))

    def _file(self, file_id: str) -> dict[str, Any]:
        name, content = self.files[file_id]
        return {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": 0,
            "filename": name,
            "purpose": self.purpose,
            "status": "processed",
        }

    def _list_files(self, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        return json_response(
            {"object": "list", "data": [self._file(file_id) for file_id in self.files], "has_more": False}
        )

    def _get_file(self, file_id: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        return json_response(self._file(file_id)) if file_id in self.files else error_response(404, "No such file")

    def _file_content(self, file_id: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        if file_id not in self.files:
            return error_response(404, "No such file")
        return Response(200, self.files[file_id][1], "application/octet-stream")

    def _delete_file(self, file_id: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        if self.files.pop(file_id, None) is None:
            return error_response(404, "No such file")
        return json_response({"id": file_id, "object": "file", "deleted": True})
