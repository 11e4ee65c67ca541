"""The child process that has llama.cpp's server: `run_llama.py REQUEST.json ANSWER.json`.

It imports nothing of ours. The request: `model`, `lora` (or null), `texts` to tokenize, `prompts`,
lists of tokens, and how many `probabilities` of the next token each is answered with, and
`generate`, the number of tokens that the last prompt is continued by, greedily.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

PATIENCE_S = 600.0


def main() -> None:
    import xllamacpp

    request = json.loads(Path(sys.argv[1]).read_text())
    parameters = xllamacpp.CommonParams()
    parameters.model.path = request["model"]
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 512, 1, 0
    parameters.warmup, parameters.hostnames, parameters.port = False, ["127.0.0.1"], 0
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # Its threads spin while they wait for each other: on a busy machine one is faster than two.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    if request["lora"]:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(request["lora"], 1.0)]
    server = xllamacpp.Server(parameters)
    address = server.listening_address

    def post(path: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        posted = urllib.request.Request(f"{address}{path}", data=data, headers=headers)
        with urllib.request.urlopen(posted, timeout=PATIENCE_S) as response:
            return json.load(response)

    def complete(prompt: list[int], count: int, **options: Any) -> Any:
        fixed = {"temperature": 0.0, "cache_prompt": False, "return_tokens": True}
        return post("/completion", {"prompt": prompt, "n_predict": count, **fixed, **options})

    tokens = [post("/tokenize", {"content": text})["tokens"] for text in request["texts"]]
    letter = post("/tokenize", {"content": "a"})["tokens"][-1]
    logprobs = []
    for prompt in request["prompts"]:
        # Probabilities are those of the model. One that answers with part of a character has none.
        bias = {"n_probs": request["probabilities"], "logit_bias": [[letter, 1e4]]}
        [answer] = complete(prompt, 1, **bias)["completion_probabilities"]
        logprobs.append({entry["id"]: entry["logprob"] for entry in answer["top_logprobs"]})
    generated = []
    if request["generate"]:
        generated = complete(request["prompts"][-1], request["generate"])["tokens"]
    result = {"tokens": tokens, "logprobs": logprobs, "generated": generated}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
