"""Reads torch DCP's files without trusting its pickle."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load


def load_into(state: dict[str, Any], path: Path, alone: bool) -> None:
    """Fills the tensors of `state` from a checkpoint folder; collective unless `alone`.

    Raises CheckpointException, RuntimeError or OSError where a tensor is missing or of another shape.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
        dcp_load(state, storage_reader=_PlainReader(path), no_dist=alone)


_NAMES = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath"),
}


class _PlainUnpickler(pickle.Unpickler):
    """DCP's metadata is a pickle. Let in are the classes that it is made of, each by its full name, and nothing that could be
    led elsewhere: no module as a whole (`filesystem` knows `os`), no loader of further pickles, no free `getattr`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how some Pythons pickle a member of an enumeration
            return _member
        if name in _NAMES.get(module, ()) or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def _member(enumeration: type, name: str) -> Any:
    if enumeration is not _MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError(f"{enumeration}.{name} has no place in a checkpoint")
    return _MEM_FORMAT_ENCODING[name]


class _PlainReader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _PlainUnpickler(io.BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("not the metadata of a checkpoint")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
