"""What the servers have in common: they answer the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.deployments.server_http import ServerHttp
from orchestrator.deployments.serving_target import Answer, Prompt


class HttpTarget:
    """A server behind its HTTP API; the base of those that adapters are deployed to."""

    def __init__(self, http: ServerHttp) -> None:
        self.endpoint, self._http = http.endpoint, http

    def ask(self, model: str, prompt: Prompt, *, max_tokens: int, is_chat: bool = False) -> Answer:
        """Return the greedy answer to a prompt."""
        return self._http.ask(model, prompt, max_tokens=max_tokens, is_chat=is_chat)

    def score(self, model: str, tokens: Sequence[int], targets: Sequence[int]) -> list[float]:
        """Return the log-probability of the tokens at these indices, by a request for each: what
        a server without the plug-in survives beside other requests.
        """
        return self._http.score_each(model, tokens, targets)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
