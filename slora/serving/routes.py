"""The JSON routes of the plug-in, for `slora deploy` and for scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from slora.serving.adapter_server import AdapterServer, EngineFailed
from slora.serving.refusals import ServingRefused

Authorize = Callable[[Mapping[str, str]], bool]


class LoadRequest(BaseModel):
    """`path`: a folder on the server's machine; `base_digest`: the base that it must be for."""

    model_config = ConfigDict(extra="forbid")
    name: str
    path: str = Field(min_length=1, max_length=4096)
    base_digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class NameRequest(BaseModel):
    """`to`: a loaded version; None takes the name away."""

    model_config = ConfigDict(extra="forbid")
    name: str
    to: str | None


class UnloadRequest(BaseModel):
    """`name`: a loaded version."""

    model_config = ConfigDict(extra="forbid")
    name: str


def add_routes(app: FastAPI, find_server: Callable[[], AdapterServer], allow: Authorize) -> None:
    """Add the routes to an app. `allow`: whether a request with these headers has the key."""

    def check_key(request: Request) -> None:
        if not allow(request.headers):
            raise HTTPException(401, "Unauthorized")

    router = APIRouter(prefix="/slora", dependencies=[Depends(check_key)])

    @router.get("/state")
    async def show_state() -> JSONResponse:
        return JSONResponse(await find_server().describe())

    @router.post("/load")
    async def load_adapter(body: LoadRequest) -> JSONResponse:
        adapter = await find_server().load(body.name, Path(body.path), body.base_digest)
        return JSONResponse({"form": adapter.form, "digest": adapter.digest})

    @router.post("/names")
    async def point_name(body: NameRequest) -> JSONResponse:
        await find_server().point(body.name, body.to)
        return JSONResponse({"name": body.name, "to": body.to})

    @router.post("/unload")
    async def unload_adapter(body: UnloadRequest) -> JSONResponse:
        await find_server().unload(body.name)
        return JSONResponse({"name": body.name})

    app.include_router(router)
    app.add_exception_handler(ServingRefused, _answer_refusal)
    app.add_exception_handler(EngineFailed, _answer_refusal)


async def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    status = error.status if isinstance(error, ServingRefused) else 503
    kind = "ServiceUnavailable" if status == 503 else "BadRequestError"
    body = {"message": str(error), "type": kind, "code": status}
    return JSONResponse({"error": body}, status_code=status)
