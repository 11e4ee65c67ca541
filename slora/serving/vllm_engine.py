"""vLLM as the engine of an adapter server, in the process of its API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slora.serving.adapter_server import EngineFailed
from slora.serving.name_plan import ServedNames


class VllmEngine:
    """vLLM's engine client and its table of models, which requests find their adapters in.

    `models`: vLLM's OpenAIServingModels; it finds a LoRA by a key of `lora_requests`, so a public
    name is a second key of the versioned request. What a prompt's cached prefix is found by is the
    versioned name and the folder, so versions share none.
    """

    def __init__(self, client: Any, models: Any) -> None:
        self._client, self._models = client, models
        self._base_paths = list(models.base_model_paths)
        self._loras = dict[str, Any]()
        """Our LoRA requests by versioned name."""
        self._others = dict[str, Any]()
        """LoRA requests that others loaded, hidden while a sparse adapter is in the weights."""

    async def pause(self) -> None:
        """Stop computing; the gate before this one has drained the requests."""
        with _translate():
            await self._client.pause_generation(mode="wait", clear_cache=True)

    async def resume(self) -> None:
        """Compute again."""
        with _translate():
            await self._client.resume_generation()

    async def rehearse(self, patches: Path) -> list[str]:
        """Return the tensors that no worker has a weight for."""
        with _translate():
            answers = await self._client.collective_rpc("rehearse_patches", args=(str(patches),))
        return _find_missing(answers)

    async def swap(self, undo: list[Path], apply: Path | None) -> None:
        """Swap the patches in every worker."""
        names = [str(file) for file in undo]
        with _translate():
            await self._client.collective_rpc(
                "swap_patches", args=(names, None if apply is None else str(apply))
            )

    async def reset_caches(self) -> None:
        """Reset what was computed with other weights: prefixes, also outside, and encoders."""
        with _translate():
            done = await self._client.reset_prefix_cache(False, True)
            await self._client.reset_encoder_cache()
        if not done:
            raise EngineFailed("the prefix cache could not be reset")

    async def add_lora(self, name: str, folder: Path) -> None:
        """Load a LoRA through vLLM's own table of models."""
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(folder))
        with _translate():
            answer = await self._models.load_lora_adapter(request)
        if isinstance(answer, ErrorResponse):
            raise EngineFailed(answer.error.message)
        self._loras[name] = self._models.lora_requests[name]

    async def remove_lora(self, name: str) -> None:
        """Free the LoRA's memory."""
        request = self._loras.pop(name)
        with _translate():
            await self._client.remove_lora(request.lora_int_id)

    def publish(self, state: ServedNames) -> None:
        """Replace what vLLM finds under our names, without letting a request in between."""
        from vllm.entrypoints.openai.models.protocol import BaseModelPath

        table, active = self._models.lora_requests, state.active_sparse
        ours = {request.lora_name for request in self._loras.values()}
        self._others.update(
            {name: request for name, request in table.items() if request.lora_name not in ours}
        )
        table.clear()
        if active is not None:
            # All names answer from the weights, which are no longer the base's.
            names = [active, *(name for name, to in state.names.items() if to == active)]
            root = self._base_paths[0].model_path
            self._models.base_model_paths[:] = [
                BaseModelPath(name=name, model_path=root) for name in names
            ]
            return
        self._models.base_model_paths[:] = self._base_paths
        table.update(self._others)
        self._others.clear()
        table.update({name: self._loras[name] for name in state.adapters if name in self._loras})
        table.update({name: self._loras[to] for name, to in state.names.items()})


def _find_missing(answers: list[list[str]]) -> list[str]:
    """Return the names that every worker lacks: with pipeline stages each has some layers only."""
    return sorted(set.intersection(*(set(names) for names in answers)))


@contextmanager
def _translate() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # vLLM passes a worker's error on as a bare Exception
        raise EngineFailed(" ".join(str(error).split())[:500] or type(error).__name__) from error


async def list_models(models: Any) -> list[dict[str, Any]]:
    """Return the cards of all names, public ones too: vLLM lists the versioned name of each."""
    listing = (await models.show_available_models()).model_dump()
    cards = {card["id"]: card for card in listing["data"]}
    for name, request in models.lora_requests.items():
        cards.setdefault(name, {**cards[request.lora_name], "id": name})
    return list(cards.values())
