"""`python -m jobs.tools.chat --adapter NAME`: chat with a base and its adapter; answers stream.

What a model says is untrusted: its rows may have taught it to write a terminal's commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jobs.errors import Fault, InputError
from jobs.store.open import open_store
from jobs.tools.adapter_arguments import make_adapter_parser
from jobs.train.job_main import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Chat until the end of the input. Exit codes as in `jobs.finetune`."""
    parser = make_adapter_parser("jobs.tools.chat", "Chat with a committed adapter.")
    parser.add_argument(
        "--prompt", help="Answer this prompt and exit; without it, hold a conversation."
    )
    parser.add_argument("--max-tokens", type=int, default=128, help="Maximum tokens per answer.")
    options = parser.parse_args(arguments)

    def work() -> None:
        # Imported here, so that a wrong argument is answered before torch is loaded.
        from jobs.tools.load_adapter import load_adapted_model

        print(f"loading {options.adapter} ...", file=sys.stderr, flush=True)
        adapted = load_adapted_model(
            open_store(options.store), options.adapter, base=options.base, merged=True
        )
        if adapted.task == "sequence-classification":
            problem = f"{adapted.manifest.label} is a classifier and can't chat"
            raise InputError([Fault("--adapter", problem, "Use `slora evaluate`.")])
        messages: list[dict[str, str]] = []
        for prompt in [options.prompt] if options.prompt else _read_lines():
            if adapted.task == "seq2seq":
                # It answers one prompt: it knows no conversation.
                messages.clear()
            messages.append({"role": "user", "content": prompt})
            answer = _generate_answer(
                adapted.model, adapted.tokenizer, messages, options.max_tokens
            )
            messages.append({"role": "assistant", "content": answer})

    return run_job(work)


def _read_lines() -> Any:
    """Yield the user's lines until the end of the input."""
    if sys.stdin.isatty():
        # Gives input() a history and line editing.
        import readline  # noqa: F401

        print("Type a message and press Enter; Ctrl-D exits.", file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line


def _generate_answer(
    model: Any, tokenizer: Any, messages: list[dict[str, str]], max_tokens: int
) -> str:
    from transformers import GenerationConfig

    from jobs.tools.answer_stream import AnswerStream
    from jobs.train.data.chat_template import ChatTemplate
    from jobs.train.data.special_tokens import find_decoder_start, find_end_ids

    is_seq2seq = bool(model.config.is_encoder_decoder)
    if tokenizer.chat_template and not is_seq2seq:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    else:
        inputs = tokenizer(messages[-1]["content"], return_tensors="pt")
    end = ChatTemplate(tokenizer).find_default_end() if tokenizer.chat_template else None
    output = model.generate(
        **inputs,
        generation_config=GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=list(find_end_ids(tokenizer, model=model, end_of_turn=end)) or None,
            **find_decoder_start(model),
        ),
        streamer=AnswerStream(tokenizer, skip_prompt=not is_seq2seq, skip_special_tokens=True),
    )
    # An encoder-decoder returns its answer alone.
    new_tokens = output[0] if is_seq2seq else output[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new_tokens, skip_special_tokens=True)).strip()


if __name__ == "__main__":
    sys.exit(main())
