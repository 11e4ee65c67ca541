"""Dealing: the same global batches for any number of workers, every row once, none leaking."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from jobs.errors import InputError
from jobs.inspect.datasets.scan import scan_dataset
from jobs.train.data.global_batches import Feed, Step
from jobs.train.data.model_inputs import make_model_inputs
from jobs.train.data.source import RowSource, StreamedSamples
from jobs.train.data.tokenization import Encoder
from tests.jobs.data.conftest import write_jsonl

CPU = torch.device("cpu")
SETTLED = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def source_of(folder: Path, lengths: list[int], **more: Any) -> RowSource:
    """Row n begins with the word w<n>, which no other row has; the others are w100 and above."""
    rows: list[dict[str, object]] = [
        {"text": " ".join(f"w{word}" for word in words_of(number, length))}
        for number, length in enumerate(lengths)
    ]
    return RowSource((write_jsonl(folder / "d.jsonl", rows),), "text", **more)


def words_of(number: int, length: int) -> list[int]:
    return [number, *(100 + (7 * number + 3 * at) % 97 for at in range(1, length))]


def feed(source: RowSource, tokenizer: Any, **more: Any) -> Feed:
    options: dict[str, Any] = {
        "kind": "tokens", "max_length": 16, "packing": "positions", "batch_size": 4,
        "micro_batch_size": 1, "rank": 0, "world_size": 1, "seed": 0,
    }  # fmt: skip
    options |= more
    encoder = Encoder(tokenizer, max_length=options["max_length"], labels=source.labels)
    return Feed(StreamedSamples(source, encoder, "causal-lm"), tokenizer, **options)


def rows_in(steps: Iterable[Step]) -> list[list[int]]:
    """The rows of each sequence, in the order they are fed."""
    rows_by_step = []
    for step in steps:
        for micro in step.micros:
            for ids in micro.inputs["input_ids"]:
                rows_by_step.append([int(word) - 10 for word in ids if 10 <= word < 110])
    return rows_by_step


def same(step: Step, other: Step) -> bool:
    pairs = zip(step.micros, other.micros, strict=True)
    return all(
        torch.equal(a.labels, b.labels)
        and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs | b.inputs)
        for a, b in pairs
    )


@SETTLED
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    batch=st.sampled_from([4, 8]),
    packing=st.sampled_from(["positions", "off"]),
)
def test_any_number_of_workers_makes_the_same_global_batches(
    words: Any, lengths: list[int], batch: int, packing: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = source_of(Path(folder), lengths)
        alone, *teams = (
            [
                list(
                    feed(
                        source,
                        words,
                        packing=packing,
                        batch_size=batch,
                        world_size=world,
                        rank=rank,
                    ).iter_steps(epochs=2)
                )
                for rank in range(world)
            ]
            for world in (1, 2, 4)
        )
    (full,) = alone
    assert sorted(row for rows in rows_in(full) for row in rows) == sorted(
        2 * list(range(len(lengths)))
    )
    for team in teams:
        for step, *shares in zip(full, *team, strict=True):
            joined = replace(step, micros=sum((share.micros for share in shares), start=()))
            assert same(step, joined)
            assert {(s.targets, s.tokens, s.rows) for s in shares} == {
                (step.targets, step.tokens, step.rows)
            }
            assert len({len(share.micros) for share in shares}) == 1
    for step in full:
        assert step.targets == sum(micro.targets for micro in step.micros)
        assert step.tokens == sum(micro.tokens for micro in step.micros)


@settings(SETTLED, max_examples=10)
@given(start=st.integers(0, 12), packing=st.sampled_from(["positions", "off"]))
def test_resuming_continues_with_the_next_batch(words: Any, start: int, packing: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        batches = feed(
            source_of(Path(folder), [3, 9, 4, 7, 2, 8, 12, 5, 3, 3]), words, packing=packing
        )
        steps, rest = (
            list(batches.iter_steps(steps=12)),
            list(batches.iter_steps(start=start, steps=12)),
        )
    assert len(steps) == 12 and len(rest) == 12 - start
    assert all(same(step, other) for step, other in zip(steps[start:], rest, strict=True))


def test_epochs_differ_in_order_and_seeds_too(words: Any, tmp_path: Path) -> None:
    source = source_of(tmp_path, [1] * 40)
    steps = list(feed(source, words, packing="off").iter_steps(epochs=2))
    first, second = rows_in(steps[:10]), rows_in(steps[10:])
    other = rows_in(feed(source, words, packing="off", seed=1).iter_steps(epochs=1))
    assert len({str(rows) for rows in (first, second, other, sorted(first))}) == 4


def test_evaluation_goes_through_the_files_in_order(words: Any, tmp_path: Path) -> None:
    batches = feed(source_of(tmp_path, [1] * 10), words, packing="off")
    steps = list(batches.iter_epoch())
    assert [rows for rows in rows_in(steps) if rows] == [[number] for number in range(10)]
    assert [step.rows for step in steps] == [4, 4, 2]


def test_unshuffled_training_keeps_the_order_of_the_files(words: Any, tmp_path: Path) -> None:
    batches = feed(source_of(tmp_path, [1] * 8), words, packing="off", shuffle=False)
    assert rows_in(batches.iter_steps(epochs=1)) == [[number] for number in range(8)]


def test_steps_run_on_over_the_end_of_an_epoch(words: Any, tmp_path: Path) -> None:
    batches = feed(source_of(tmp_path, [1] * 6), words, packing="off")
    steps = list(batches.iter_steps(steps=3))
    assert [step.rows for step in steps] == [4, 4, 4]
    numbers = [row for rows in rows_in(steps) for row in rows]
    assert sorted(numbers[:6]) == sorted(numbers[6:]) == list(range(6))


def test_a_last_batch_is_filled_up_with_rows_without_targets(words: Any, tmp_path: Path) -> None:
    batches = feed(source_of(tmp_path, [5] * 5), words, packing="off", micro_batch_size=2)
    last = list(batches.iter_steps(epochs=1))[-1]
    assert (last.rows, last.tokens, last.targets) == (1, 6, 5)
    assert [micro.targets for micro in last.micros] == [5, 0]
    assert bool((last.micros[1].labels == -100).all())


def test_count_returns_the_counts_of_an_epoch(words: Any, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "w1 w2 ", "completion": "w3"},
        {"prompt": "w1 " * 20, "completion": "w2"},
        {"prompt": "w1 ", "completion": "w2 " * 20},
    ]
    source = RowSource((write_jsonl(tmp_path / "d.jsonl", rows),), "prompt-completion")
    count = feed(source, words).count()
    assert (count.sequences, count.rows, count.tokens, count.targets) == (2, 3, 20, 17)
    assert (count.truncated, count.dropped, count.fill) == (2, 1, 20 / 32)


def test_data_of_which_every_target_is_cut_off_ends_in_an_error_and_not_in_a_loop(
    words: Any, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"prompt": "w1 " * 20, "completion": "w2"}]
    source = RowSource((write_jsonl(tmp_path / "d.jsonl", rows),), "prompt-completion")
    with pytest.raises(InputError, match="no train row has a target within 16 tokens"):
        next(feed(source, words).iter_steps())


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 7])
def test_any_number_of_workers_sees_every_row_once_and_all_do_as_many_micro_batches(
    words: Any, tmp_path: Path, world_size: int
) -> None:
    source = source_of(tmp_path, [1] * 10)
    by_rank = [
        list(feed(source, words, rank=rank, world_size=world_size).iter_steps(epochs=1))
        for rank in range(world_size)
    ]
    for at, alone in enumerate(feed(source, words).iter_steps(epochs=1)):
        together = [steps[at] for steps in by_rank]
        assert {step.targets for step in together} == {alone.targets}
        assert len({len(step.micros) for step in together}) == 1
        assert sum(b.targets for step in together for b in step.micros) == alone.targets


def test_a_row_is_trained_on_or_held_out_and_never_both(words: Any, tmp_path: Path) -> None:
    train = source_of(tmp_path, [1] * 60, eval_fraction=0.3, seed=3)
    held = replace(train, split="eval")
    sides = [
        {row for rows in rows_in(feed(side, words).iter_steps(epochs=2)) for row in rows}
        for side in (train, held)
    ]
    assert sides[0] | sides[1] == set(range(60))
    assert not sides[0] & sides[1] and min(map(len, sides)) > 5


def test_a_bad_row_met_while_training_names_its_file_and_line(words: Any, tmp_path: Path) -> None:
    source = source_of(tmp_path, [1] * 3)
    with source.files[0].open("a") as file:
        file.write('{"text": 3}\n')
    with pytest.raises(InputError, match=r"d\.jsonl:4: text is 3"):
        list(feed(source, words).iter_steps(epochs=1))


def test_all_files_are_read_in_every_epoch(words: Any, tmp_path: Path) -> None:
    files = tuple(
        write_jsonl(tmp_path / f"{number}.jsonl", [{"text": f"w{number}"}]) for number in range(20)
    )
    steps = list(feed(RowSource(files, "text"), words, packing="off").iter_steps(epochs=2))
    first, second = rows_in(steps[:5]), rows_in(steps[5:])
    assert sorted(first) == sorted(second) == [[number] for number in range(20)]


def tiny_llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> Any:
    """Its positions are absolute: rotary ones look the same wherever a row begins."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="sdpa")).eval()


LENGTHS = [3, 9, 4, 7, 2, 8, 12, 5]


@pytest.mark.parametrize("packing", ["positions", "mask", "off"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_the_logits_of_a_row_do_not_depend_on_its_batch(
    words: Any, tmp_path: Path, packing: str, build: Callable[[], Any]
) -> None:
    model, compared = build(), 0
    batches = feed(source_of(tmp_path, LENGTHS), words, packing=packing, micro_batch_size=2)
    for step in batches.iter_epoch():
        for micro in step.micros:
            with torch.no_grad():
                logits = model(**make_model_inputs(model, micro, device=CPU)).logits
            ids = micro.inputs["input_ids"]
            for line, begin in ((ids >= 10) & (ids < 110)).nonzero().tolist():
                number = int(ids[line, begin]) - 10
                words_alone = [word + 10 for word in words_of(number, LENGTHS[number])]
                alone = torch.tensor([[*words_alone, words.eos_token_id]])
                with torch.no_grad():
                    expected = model(input_ids=alone).logits[0]
                actual = logits[line, begin : begin + alone.shape[1]]
                assert torch.allclose(actual, expected, atol=1e-5)
                compared += 1
    assert compared == len(LENGTHS)


def test_every_padded_row_attends_to_something_filler_too(words: Any, tmp_path: Path) -> None:
    batches = feed(source_of(tmp_path, [3, 5]), words, packing="off")
    (step,) = batches.iter_epoch()
    assert [micro.tokens > 0 for micro in step.micros][-1] is False
    for micro in step.micros:
        assert (micro.inputs["attention_mask"].sum(-1) > 0).all()


def test_a_packed_token_sees_its_own_row_up_to_itself(words: Any, tmp_path: Path) -> None:
    batches = feed(source_of(tmp_path, [1, 2]), words, max_length=8, packing="mask")
    (micro, *_) = next(batches.iter_epoch()).micros
    inputs = make_model_inputs(tiny_llama(), micro, device=CPU)
    seen = ["".join(".x"[int(cell)] for cell in row) for row in inputs["attention_mask"][0, 0]]
    assert seen == [
        "x.......",
        "xx......",
        "..x.....",
        "..xx....",
        "..xxx...",
        ".....x..",
        "......x.",
        ".......x",
    ]
    assert micro.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 0, 0]]


def gradient(model: Any, step: Step) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for micro in step.micros:
        inputs = make_model_inputs(model, micro, device=CPU)
        logits = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), micro.labels[:, 1:].reshape(-1), reduction="sum"
        )
        (loss / step.targets).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_packing_changes_nothing_in_the_gradient(words: Any, tmp_path: Path) -> None:
    source, model = source_of(tmp_path, LENGTHS), tiny_llama()
    gradients = []
    for packing in ("positions", "off"):
        (step,) = feed(source, words, packing=packing, batch_size=8).iter_epoch()
        gradients.append(gradient(model, step))
    for name, packed in gradients[0].items():
        assert torch.isfinite(packed).all()
        assert torch.allclose(packed, gradients[1][name], atol=1e-6), name


def test_more_padding_changes_no_logit(words: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    batches = feed(source_of(tmp_path, [3, 5]), words, packing="off", micro_batch_size=4)
    (batch,) = next(batches.iter_epoch()).micros
    wide = {name: torch.nn.functional.pad(value, (0, 8)) for name, value in batch.inputs.items()}
    with torch.no_grad():
        near, far = model(**batch.inputs).logits, model(**wide).logits
    assert torch.isfinite(near).all()
    assert torch.allclose(near[:2, :4], far[:2, :4], atol=1e-5)


def test_a_classifier_gets_flat_masks_and_one_label_a_row(words: Any, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": "w1 w2 " * (length // 2) + "w3", "label": label}
        for length, label in ((3, 10), (9, 2), (30, 10))
    ]
    scan = scan_dataset(
        str(write_jsonl(tmp_path / "d.jsonl", rows)),
        "auto",
        "sequence-classification",
        "data.train",
    )
    source = RowSource(scan.files, scan.format, labels=scan.labels)
    options = {"kind": "class", "packing": "off"}
    batches = feed(source, words, **options, max_length=20, micro_batch_size=2)
    first, second = next(batches.iter_epoch()).micros
    assert first.labels.tolist() == [1, 0] and second.labels.tolist() == [1, -100]
    assert first.inputs["input_ids"].shape == (2, 20)
    assert first.inputs["attention_mask"].sum(1).tolist() == [3, 9]
    assert (first.tokens, second.tokens, second.targets) == (12, 20, 1)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=20, num_labels=2,
    )  # fmt: skip
    model: Any = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        logits = model(**first.inputs).logits
        alone = model(input_ids=first.inputs["input_ids"][:1, :3]).logits
        assert torch.isfinite(model(**second.inputs).logits).all()
    assert torch.allclose(logits[:1], alone, atol=1e-5)


def test_lengths_are_rounded_up_but_never_past_the_longest_allowed(
    words: Any, tmp_path: Path
) -> None:
    batches = feed(source_of(tmp_path, [3] * 4 + [17]), words, packing="off", max_length=18)
    widths = [step.micros[0].inputs["input_ids"].shape[1] for step in batches.iter_epoch()]
    assert widths == [8, 18]


def test_a_tokenizer_without_padding_pads_with_its_end(chatml: Any, tmp_path: Path) -> None:
    batches = feed(source_of(tmp_path, [1]), chatml)
    (micro, *_) = next(batches.iter_epoch()).micros
    assert micro.inputs["input_ids"][0, -1] == chatml.eos_token_id
    assert micro.labels[0, -1] == -100
