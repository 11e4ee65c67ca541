"""`python -m jobs.chat --adapter NAME`: talk to a base with its adapter; answers stream."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jobs.adapter_arguments import adapter_parser
from jobs.ended import ended
from jobs.errors import Fault, InputError
from jobs.store.objects import open_store


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes as the fine-tuning job's; the end of the input ends the talk."""
    parser = adapter_parser("jobs.chat", "Talk to a committed adapter.")
    parser.add_argument("--prompt", help="ask once and end; without it, a conversation")
    parser.add_argument("--max-tokens", type=int, default=128, help="of one answer")
    asked = parser.parse_args(arguments)

    def work() -> None:
        # Here, so that a wrong argument is answered before torch is loaded.
        from jobs.adapted import load_adapted

        print(f"loading {asked.adapter} ...", file=sys.stderr, flush=True)
        adapted = load_adapted(open_store(asked.store), asked.adapter, base=asked.base, merged=True)
        if adapted.task != "causal-lm":
            problem = f"{adapted.manifest.label} classifies and can't chat"
            raise InputError([Fault("--adapter", problem, "Try slora evaluate.")])
        talk: list[dict[str, str]] = []
        for said in [asked.prompt] if asked.prompt else _lines():
            talk.append({"role": "user", "content": said})
            answer = _answer(adapted.model, adapted.tokenizer, talk, asked.max_tokens)
            talk.append({"role": "assistant", "content": answer})

    return ended(work)


def _lines() -> Any:
    """What the user types, until an empty end of input."""
    if sys.stdin.isatty():
        # Gives input() a history and line editing.
        import readline  # noqa: F401

        print("Type, then Enter; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            said = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if said:
            yield said


def _answer(model: Any, tokenizer: Any, talk: list[dict[str, str]], most: int) -> str:
    from transformers import GenerationConfig, TextStreamer

    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    else:
        asked = tokenizer(talk[-1]["content"], return_tensors="pt")
    found = model.generate(
        **asked,
        generation_config=GenerationConfig(
            max_new_tokens=most,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    new = found[0, asked["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


if __name__ == "__main__":
    sys.exit(main())
