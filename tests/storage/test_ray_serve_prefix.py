"""Ray Serve LLM's own code finds and downloads what a deployment writes below its loading path."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobs.store.local import DirectoryStore
from jobs.store.s3.s3_store import S3Store
from orchestrator.deployments.ray_serve_target import RayServeTarget
from orchestrator.deployments.server_http import ServerHttp
from tests.orchestrator.deployments.builders import commit_version

pytestmark = pytest.mark.ray


def test_rays_own_reader_lists_and_downloads_a_deployed_version(s3: S3Store, tmp_path: Path):
    from ray.llm._internal.common.utils.cloud_utils import CloudFileSystem
    from ray.llm._internal.common.utils.lora_utils import (
        get_lora_finetuned_context_length,
        get_lora_id,
        get_lora_model_ids,
    )

    store = DirectoryStore(tmp_path / "store")
    versions = [commit_version(store, tmp_path / "folders") for _ in range(2)]
    target = RayServeTarget(ServerHttp("ray", "http://127.0.0.1:1", None), s3, "base", None)
    for manifest in versions:
        target.load(manifest.label, store, manifest)
    path = s3.url("").rstrip("/")
    assert sorted(get_lora_model_ids(path, "base")) == ["base:chat@v1", "base:chat@v2"]
    folder = f"{path}/{get_lora_id('base:chat@v1')}"
    # Reads adapter_config.json, which may name no length.
    asyncio.run(get_lora_finetuned_context_length(folder))
    CloudFileSystem.download_files(str(tmp_path / "replica"), folder)
    for file in versions[0].files:
        expected = store.get(versions[0].prefix + file.name)
        assert (tmp_path / "replica" / file.name).read_bytes() == expected
    target.unload("chat@v1")
    # Ray serves a folder that has this file; an S3 server may list an empty folder for a while.
    assert list(s3.list("chat@v1/")) == []
    assert CloudFileSystem.get_file(f"{folder}/adapter_config.json") is None
