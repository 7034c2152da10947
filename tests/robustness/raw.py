"""A client that ignores the page: it joins the queue by hand, with any event and any values."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import httpx


class Raw:
    """Speaks HTTP to a page; every private event is within its reach."""

    def __init__(self, url: str) -> None:
        self.url, self.session = url.rstrip("/"), secrets.token_hex(6)
        self.running: dict[str, Any] = {}
        self.http = httpx.Client(timeout=60)
        self.config = self.http.get(f"{self.url}/config").json()

    def events(self, target: str) -> list[dict[str, Any]]:
        """Events that a component with this label or elem_id sets off."""
        ids = {
            c["id"] for c in self.config["components"] if target in (c["props"].get("elem_id"), c["props"].get("label"))
        }
        return [d for d in self.config["dependencies"] if any(t[0] in ids for t in d["targets"])]

    def send(self, event: dict[str, Any], data: list[Any], choice: Any = None) -> list[dict[str, Any]]:
        """Join the queue with `data` and read every message until the end."""
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session, "event_data": choice}
        joined = self.http.post(f"{self.url}/gradio_api/queue/join", json=body)
        if joined.status_code != 200:
            return [{"msg": "refused", "status": joined.status_code, "text": joined.text}]
        messages = []
        address = f"{self.url}/gradio_api/queue/data?session_hash={self.session}"
        with self.http.stream("GET", address) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                messages.append(json.loads(line[5:]))
                if messages[-1]["msg"] in ("process_completed", "close_stream", "unexpected_error", "queue_full"):
                    break
        return messages

    def follow(self, event: dict[str, Any], data: list[Any]) -> Iterator[tuple[float, str]]:
        """Join the queue; (seconds since then, message as text) as they come, to the end or until the caller stops."""
        start = time.perf_counter()
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session}
        joined = self.http.post(f"{self.url}/gradio_api/queue/join", json=body).json()
        self.running = {"session_hash": self.session, "fn_index": event["id"], "event_id": joined["event_id"]}
        address = f"{self.url}/gradio_api/queue/data?session_hash={self.session}"
        with self.http.stream("GET", address) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    yield time.perf_counter() - start, line[5:]
                if "process_completed" in line or "close_stream" in line:
                    return

    def cancel(self) -> None:
        """What the Stop button does to the run that `follow` began."""
        self.http.post(f"{self.url}/gradio_api/cancel", json=self.running).raise_for_status()

    def defaults(self, event: dict[str, Any]) -> list[Any]:
        """The values with which the page starts, for all inputs of an event."""
        values = {c["id"]: c["props"].get("value") for c in self.config["components"]}
        return [values.get(number) for number in event["inputs"]]
