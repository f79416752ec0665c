"""Read an offline W&B file back: LevelDB's log framing around wandb's protobuf records."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

MAGIC = b":W&B"
BLOCK = 32768
HEADER = struct.Struct("<IHB")
"""Checksum, length and kind of a chunk; a record is one whole chunk or first, middle ..., last."""
FIRST_CHUNK = 7
WHOLE, LAST = 1, 4
PATIENCE = 10.0
"""Seconds."""


@dataclass
class OfflineRun:
    """What W&B would be sent."""

    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    """As it stood at the end; what ``define_metric`` asked for lies below the key, ``{"max": 1.0, "last": 0.5}``."""
    metrics: dict[str, tuple[str, set[str]]] = field(default_factory=dict)
    """Key or pattern -> its x axis, and what its summary keeps."""
    files: set[str] = field(default_factory=set)
    """Pictures and tables, below the run's ``files``."""


def read_run(path: Path) -> OfflineRun:
    """Of a run that was closed; W&B's service writes the last of it after ``finish()`` has returned."""
    deadline = time.monotonic() + PATIENCE
    records = list(_records(path.read_bytes()))
    while not any(record.WhichOneof("record_type") == "exit" for record in records):
        assert time.monotonic() < deadline, f"{path} was never closed"
        time.sleep(0.05)
        records = list(_records(path.read_bytes()))
    run = OfflineRun()
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
            run.group, run.job_type, run.tags = record.run.run_group, record.run.job_type, list(record.run.tags)
            run.config.update(_values(record.run.config.update))
        elif kind == "config":
            run.config.update(_values(record.config.update))
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary.update(_values(record.summary.update))
        elif kind == "metric":
            kept = {option.name for option, value in record.metric.summary.ListFields() if value}
            run.metrics[record.metric.name or record.metric.glob_name] = (record.metric.step_metric, kept)
        elif kind == "files":
            run.files |= {file.path for file in record.files.files}
    return run


def read_runs(directory: Path) -> list[OfflineRun]:
    """Of a run directory, in the order in which they were opened."""
    return [read_run(path) for path in sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))]


def _records(data: bytes) -> Iterator[Any]:
    assert data.startswith(MAGIC), data[:FIRST_CHUNK]
    at, payload = FIRST_CHUNK, b""
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:  # a header never crosses a block
            at += left
            continue
        _, length, kind = HEADER.unpack_from(data, at)
        if kind == 0:
            return
        at += HEADER.size
        payload += data[at : at + length]
        at += length
        if kind in (WHOLE, LAST):
            yield pb.Record.FromString(payload)  # pyright: ignore[reportAttributeAccessIssue]
            payload = b""


def _values(items) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
