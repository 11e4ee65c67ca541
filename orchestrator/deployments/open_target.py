"""Open the server behind the name or the URL of an endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from jobs.errors import Fault, InputError
from jobs.store.open import open_store
from orchestrator.control.projects.private_file import read_secret
from orchestrator.deployments.endpoint_config import MAX_URL_CHARS, URL, EndpointConfig
from orchestrator.deployments.errors import TargetUnreachable
from orchestrator.deployments.ray_serve_target import RayServeTarget
from orchestrator.deployments.server_http import ServerHttp
from orchestrator.deployments.serving_target import ServingTarget
from orchestrator.deployments.stock_vllm import StockVllmTarget
from orchestrator.deployments.vllm_target import STATE_PATH, VllmTarget

URL_KEY_VARIABLE = "SLORA_SERVING_KEY"
"""API key of an endpoint that is named by its URL."""

TargetOpener = Callable[[str], ServingTarget]
"""Opens the endpoint of a deployment by its name or URL."""


def find_endpoint(
    endpoints: Mapping[str, EndpointConfig], name: str, *, allow_url: bool, project: str
) -> EndpointConfig:
    """Return the endpoint of a name that a project may use, or of a URL. Raise InputError."""
    config = endpoints.get(name)
    if config is not None and project in config.projects:
        return config
    if allow_url and len(name) <= MAX_URL_CHARS and re.fullmatch(URL, name):
        return _make_url_endpoint(name)
    names = [known for known, config in endpoints.items() if project in config.projects]
    problem = f"{name[:200]!a} is no endpoint of this project"
    options = f"Use one of {', '.join(sorted(names))}" if names else "None is configured"
    tail = ", or the URL of a server." if allow_url else "; `serving` in the service's file."
    raise InputError([Fault("endpoint", problem, options + tail)])


def open_target(name: str, config: EndpointConfig) -> ServingTarget:
    """Open a server, and find out whether it has the plug-in. Raise TargetUnreachable."""
    http = ServerHttp(name, config.url, _read_key(name, config))
    if config.kind == "ray-serve":
        assert config.loading_path is not None and config.model is not None
        store = open_store(config.loading_path)
        return RayServeTarget(http, store, config.model, config.base_digest)
    try:
        answer = http.send("GET", STATE_PATH)
    except TargetUnreachable:
        http.close()
        raise
    if answer.status == 404:
        return StockVllmTarget(http, config.folder_path, config.base_digest)
    return VllmTarget(http, config.folder_path)


def _make_url_endpoint(url: str) -> EndpointConfig:
    variable = URL_KEY_VARIABLE if os.environ.get(URL_KEY_VARIABLE) else None
    return EndpointConfig(url=url, api_key_env=variable)


def _read_key(name: str, config: EndpointConfig) -> str | None:
    """Return the API key, read again each time: it may be rotated. Raise TargetUnreachable."""
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            raise TargetUnreachable(name, f"{config.api_key_env} holds no API key")
        return key
    if config.api_key_file is None:
        return None
    try:
        return read_secret(config.api_key_file)
    except ValueError as error:
        raise TargetUnreachable(name, str(error)) from None
