"""The part of the fake tuning server that is Cloud Storage."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from skllm_ray.testing.tuning_http import Response, error_response, json_response
from skllm_ray.testing.uploads import crc32c, multipart


class CloudStorage:
    """Buckets and objects, as Cloud Storage's JSON API has them, and the tokens that its clients ask for."""

    storage_routes: ClassVar[list[tuple[str, str, str]]] = [
        ("POST", r"/token", "_token"),
        ("GET", r"/storage/v1/b/([^/]+)/iam/testPermissions", "_permissions"),
        ("POST", r"/upload/storage/v1/b/([^/]+)/o", "_put_object"),
        ("GET", r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)", "_get_object"),
        ("GET", r"/storage/v1/b/([^/]+)/o", "_list_objects"),
        ("DELETE", r"/storage/v1/b/([^/]+)/o/(.+)", "_delete_object"),
    ]

    objects: dict[str, bytes]
    buckets: dict[str, bool]
    honours_preconditions: bool
    _generations: dict[str, int]
    _lock: threading.RLock

    def _token(self, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        return json_response({"access_token": "local", "token_type": "Bearer", "expires_in": 3600})

    def _permissions(self, bucket: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del headers, body
        if bucket not in self.buckets:
            return error_response(404, "The specified bucket does not exist.")
        granted = [query["permissions"]] if self.buckets[bucket] else []
        return json_response({"permissions": granted})

    def _put_object(self, bucket: str, *, query: Any, headers: Any, body: bytes) -> Response:
        if bucket not in self.buckets:
            return error_response(404, "The specified bucket does not exist.")
        if not self.buckets[bucket]:
            return error_response(403, "The caller does not have storage.objects.create access.")
        meta, content = multipart(headers["content-type"], body)
        name = f"{bucket}/{meta['name']}"
        if meta.get("crc32c") not in {None, crc32c(content)}:
            return error_response(400, "The checksum does not match.")
        with self._lock:
            if self.honours_preconditions and query.get("ifGenerationMatch") == "0" and name in self.objects:
                return error_response(412, "At least one of the pre-conditions you specified did not hold.")
            self.objects[name] = content
            self._generations[name] = self._generations.get(name, 0) + 1
        return json_response(self._object(name))

    def _object(self, name: str) -> dict[str, Any]:
        bucket, _, path = name.partition("/")
        content = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": path,
            "generation": str(self._generations[name]),
            "size": str(len(content)),
            "crc32c": crc32c(content),
        }

    def _get_object(self, bucket: str, path: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del headers, body
        name = f"{bucket}/{path}"
        if name not in self.objects:
            return error_response(404, "No such object")
        return Response(200, self.objects[name]) if query.get("alt") == "media" else json_response(self._object(name))

    def _delete_object(self, bucket: str, path: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del query, headers, body
        if self.objects.pop(f"{bucket}/{path}", None) is None:
            return error_response(404, "No such object")
        return Response(204, b"")

    def _list_objects(self, bucket: str, *, query: Any, headers: Any, body: bytes) -> Response:
        del headers, body
        if bucket not in self.buckets:
            return error_response(404, "The specified bucket does not exist.")
        prefix = f"{bucket}/{query.get('prefix', '')}"
        return json_response(
            {"items": [self._object(name) for name in sorted(self.objects) if name.startswith(prefix)]}
        )
