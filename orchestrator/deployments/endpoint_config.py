"""The `serving` section of a service: the servers that adapters are deployed to, by name.

The file names where an API key lies, never the key: it is in no record, no log and no answer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import Digest, Name
from jobs.store.trust.statements import OPERATOR_PROJECT
from orchestrator.control.projects.private_file import read_secret

DEFAULT_FOLDER = ".cache/serving/adapters"
URL = r"^https?://[A-Za-z0-9._:\[\]-]+(?:/[A-Za-z0-9._/-]*)?$"
MAX_URL_CHARS = 500
VARIABLE = r"^[A-Z][A-Z0-9_]{0,127}$"


def _check_key_file(name: str) -> str:
    read_secret(name)
    return name


FileName = Annotated[str, Field(min_length=1, max_length=4096)]


class EndpointConfig(StrictModel):
    """An inference server."""

    kind: Literal["vllm", "ray-serve"] = "vllm"
    """`vllm`, with or without slora's plug-in, or an application of Ray Serve LLM."""
    url: str = Field(pattern=URL, max_length=MAX_URL_CHARS)
    """URL of its OpenAI API, without /v1."""
    api_key_file: Annotated[FileName, AfterValidator(_check_key_file)] | None = None
    """File with its API key, which only its owner may read."""
    api_key_env: str | None = Field(default=None, pattern=VARIABLE)
    """Environment variable of the service that holds its API key."""
    projects: tuple[Name, ...] = Field(
        default=(OPERATOR_PROJECT,), min_length=1, max_length=1000, strict=False
    )
    """Projects that may deploy to it. All of them share its memory."""
    folder: FileName = DEFAULT_FOLDER
    """Folder for copies of the versions, which the server reads under the same path; of `vllm`."""
    base_digest: Digest | None = None
    """Digest of the base that it serves, where the server itself does not tell: without the
    plug-in. `slora adapters show NAME --json` has that of an adapter."""
    loading_path: FileName | None = None
    """The application's dynamic_lora_loading_path, s3://BUCKET/PREFIX; of `ray-serve`."""
    model: FileName | None = None
    """The application's model id, without an adapter; of `ray-serve`."""

    @model_validator(mode="after")
    def _check_keys(self) -> EndpointConfig:
        if self.api_key_file and self.api_key_env:
            raise ValueError("api_key_file and api_key_env exclude each other")
        if self.kind == "ray-serve" and not (self.loading_path and self.model):
            raise ValueError("ray-serve needs loading_path and model")
        if self.loading_path and not self.loading_path.startswith("s3://"):
            raise ValueError("loading_path is s3://BUCKET/PREFIX: Ray Serve LLM reads no folders")
        if self.kind == "vllm" and (self.loading_path or self.model):
            raise ValueError("loading_path and model are of ray-serve")
        return self

    @property
    def folder_path(self) -> Path:
        """Return the absolute path of the folder for copies."""
        return Path(os.path.expanduser(self.folder)).resolve()
