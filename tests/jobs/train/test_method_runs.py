"""All variants of the method through the full loop: masks, hand-offs, inits, sparse factors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from jobs.inspect.datasets.scan import scan_dataset
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.open import open_store
from jobs.tools.diff import main as diff
from jobs.tools.export import main as export
from jobs.tools.load_adapter import load_adapted_model
from jobs.train.data.global_batches import Feed
from jobs.train.data.source import RowSource, StreamedSamples
from jobs.train.data.tokenization import Encoder
from jobs.train.evaluation import evaluate
from slora.formats.peft import LoraAdapter, SparseAdapter, read_adapter
from tests.long import cases, long_asked
from tests.tiny import chat_rows, tiny_chat_model, tiny_gpt2, tiny_spec
from tests.training_runs import TrainingCase, TrainingResult, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

MASKS = ("magnitude", "gradient", "fisher", "snip", "rows", "columns", "blocks")
WAYS: dict[str, dict[str, Any]] = {
    **{mask: {"mask": mask} for mask in MASKS},
    "random rows": {"mask": "rows", "score": "random"},
    "own score": {"mask": "loudest"},
    "global": {"mask": "fisher", "allocation": "global"},
    "global rows": {"mask": "rows", "score": "fisher", "allocation": "global"},
    "norm": {"handoff": {"rescale": "norm"}},
    "loss": {"handoff": {"norm": "loss"}},
    "weights": {"handoff": {"norm": "weights"}},
    "projection b": {"handoff": {"rescale": "projection", "split": "b"}},
    "keep": {"mask": "gradient", "handoff": {"residual": "keep"}},
    "fold": {"mask": "gradient", "handoff": {"residual": "fold"}},
    "no sparse step": {"sparse_share": 0.0},
    "rslora": {"kind": "lora", "rslora": True},
    "pissa": {"kind": "lora", "init": "pissa"},
    "lora-ga": {"kind": "lora", "init": "lora-ga"},
    "sparse factors": {"mask": "gradient", "factor_density": 0.5},
    "sparse factors alone": {"kind": "lora", "factor_density": 0.5},
    "compact factors": {"kind": "lora", "factor_density": 0.5, "factor_storage": "compact"},
    "sparse factors of pissa": {"kind": "lora", "init": "pissa", "factor_density": 0.5},
    "gates": {"kind": "lora", "rank": 4, "factor_density": 0.5, "factor_pruning": "gates"},
    "gpt2 fisher": {"mask": "fisher"},
    "gpt2 keep": {"mask": "rows", "sizing": "density", "handoff": {"residual": "keep"}},
    "gpt2 pissa": {"kind": "lora", "init": "pissa"},
    "sparse fisher": {"kind": "sparse", "mask": "fisher"},
    "sparse blocks": {"kind": "sparse", "mask": "blocks"},
}
SHARDED = ("fisher", "loss", "keep", "fold", "pissa", "lora-ga", "sparse factors", "gates",
           "gpt2 keep", "gpt2 pissa")  # fmt: skip
NARROW = ("gpt2 fisher", "loss", "blocks", "sparse factors", "gates")
"""With a bfloat16 base too."""
DIE = {"fisher": "step 2", "fold": "step 9", "keep": "commit", "sparse factors": "step 9",
       "gates": "step 31", "lora-ga": "step 5"}  # fmt: skip
STEPS = {"gates": 45}
"""Optimizer steps, if not 12: so many that some lie between two prunings."""
COMPACT = {"keep", "gpt2 keep", "fold", "compact factors", "sparse fisher", "sparse blocks"}


# The runs of `make test` beside a run of most variants on one rank.
ON_TWO = ("fisher", "loss", "random rows", "keep", "gpt2 keep")
IN_SHARDS = ("loss", "keep", "sparse factors")
IN_BFLOAT16 = ("gpt2 fisher",)
DYING = ("keep", "sparse factors")
ALSO_LONG = ("magnitude", "snip", "norm", "projection b", "no sparse step",
             "sparse factors of pissa")  # fmt: skip
"""Not even on one rank: tests of their own part show what they do differently."""
SINGLE_RANK = tuple(way for way in WAYS if way not in ALSO_LONG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("method")
    tiny_chat_model(path / "model")
    tiny_gpt2(path / "gpt2")
    chat_rows(path / "train.jsonl", 60)
    chat_rows(path / "eval.jsonl", 9)
    return path


def _make_case(folder: Path, way: str, kind: str, dies: str = "") -> TrainingCase:
    """Make the case of a run. `kind`: 1 or 2 ranks, cluster (sharded base), narrow, or died."""
    run = f"{way}-{kind}".replace(" ", "-")
    spec = tiny_spec(
        folder,
        name=run,
        model={
            "path": str(folder / ("gpt2" if "gpt2" in way else "model")),
            "dtype": "bfloat16" if kind == "narrow" else "float32",
        },
        data={"eval": str(folder / "eval.jsonl")},
        method={"calibration_batches": 2, **WAYS[way]},
        train={
            "steps": STEPS.get(way, 12),
            "micro_batch_size": 2,
            "checkpoint_every": 1 if "died" in kind else None,
        },
        cluster={"sharding": "cluster" if kind == "cluster" else "replicate"},
    )
    return TrainingCase(run, spec, dies=dies, samples=run == "gpt2-keep-2")


@pytest.fixture(scope="module")
def results(folder: Path, request: pytest.FixtureRequest) -> dict[str, TrainingResult]:
    """Run two groups of processes, and a third for those that resume."""
    is_long = long_asked(request)
    dying = tuple(DIE) if is_long else DYING
    died = [_make_case(folder, way, "died", dies=DIE[way]) for way in dying]
    single = train_all(
        [*(_make_case(folder, way, "1") for way in (WAYS if is_long else SINGLE_RANK)), *died], 1
    )
    two = train_all(
        [_make_case(folder, way, "2") for way in (WAYS if is_long else ON_TWO)]
        + [_make_case(folder, way, "cluster") for way in (SHARDED if is_long else IN_SHARDS)]
        + [_make_case(folder, way, "narrow") for way in (NARROW if is_long else IN_BFLOAT16)],
        2,
    )
    again = train_all([_make_case(folder, way, "died") for way in dying], 1)
    return {**single, **two, **again}


def _get_result(results: dict[str, TrainingResult], way: str, kind: str) -> TrainingResult:
    return results[f"{way}-{kind}".replace(" ", "-")]


def _make_name(way: str, kind: str = "1") -> str:
    return f"{way}-{kind}".replace(" ", "-")


@pytest.mark.parametrize("way", cases(WAYS, ON_TWO))
def test_masks_and_losses_are_the_same_on_one_rank_and_on_two(results, way):
    single, two = _get_result(results, way, "1"), _get_result(results, way, "2")
    assert len(single.losses) == len(two.losses) == STEPS.get(way, 12)
    assert two.losses == pytest.approx(single.losses, rel=1e-3)
    assert two.masks[0] == two.masks[1] == single.masks[0]
    assert single.evaluations["end"]["loss"] < single.evaluations["before"]["loss"]


FOUR = ("fisher", "snip", "rows", "global")


@pytest.mark.long
def test_masks_by_score_are_the_same_on_four_ranks_too(results, folder):
    four = train_all([_make_case(folder, way, "4") for way in FOUR], 4)
    for way in FOUR:
        masks = _get_result(four, way, "4").masks
        assert masks == [_get_result(results, way, "1").masks[0]] * 4
        assert masks[0]


@pytest.mark.parametrize("way", cases(SHARDED, IN_SHARDS))
def test_a_sharded_base_changes_no_loss(results, way):
    expected = _get_result(results, way, "1").losses
    assert _get_result(results, way, "cluster").losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("way", cases(NARROW, IN_BFLOAT16))
def test_a_bfloat16_base_learns_as_a_float32_one_does_to_its_precision(results, way):
    narrow = _get_result(results, way, "narrow")
    # bfloat16 has 8 bits: a loss of 5.5 is known to about 0.02.
    assert narrow.losses == pytest.approx(_get_result(results, way, "1").losses, abs=0.06)
    assert narrow.base_untouched


@pytest.mark.parametrize("way", cases(DIE, DYING))
def test_a_run_that_died_ends_with_the_same_bits(results, way):
    assert _get_result(results, way, "died").files == _get_result(results, way, "1").files


@pytest.mark.parametrize("way", cases(WAYS, SINGLE_RANK))
def test_the_committed_adapter_on_its_base_has_the_loss_that_the_run_ended_with(
    results, folder, way
):
    store = open_store(f"file://{folder / 'store'}")
    expected = _get_result(results, way, "1").evaluations["end"]["loss"]
    for merged in (False, True):
        adapted = load_adapted_model(store, _make_name(way), merged=merged)
        scan = scan_dataset(str(folder / "eval.jsonl"), "chat", "causal-lm", "data.eval")
        rows = RowSource(files=scan.files, format="chat", labels=())
        samples = StreamedSamples(rows, Encoder(adapted.tokenizer, max_length=64), "causal-lm")
        feed = Feed(
            samples, adapted.tokenizer,
            kind="tokens", max_length=64, packing="positions", batch_size=1, micro_batch_size=1,
            rank=0, world_size=1, seed=0, shuffle=False,
        )  # fmt: skip
        measured = evaluate(adapted.model, feed, device=adapted.model.device)
        assert measured["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("way", cases(WAYS, SINGLE_RANK))
def test_the_folder_is_a_lora_where_the_update_is_one(results, folder, tmp_path, way):
    store = open_store(f"file://{folder / 'store'}")
    adapter = read_adapter(
        pull(store, resolve_adapter(store, _make_name(way)), tmp_path / "adapter")
    )
    assert isinstance(adapter, SparseAdapter if way in COMPACT else LoraAdapter)


@pytest.mark.parametrize("way", ["rows", "columns", "blocks", "random rows", "global rows"])
def test_masks_sized_by_the_rank_lose_nothing_at_the_hand_off(results, way):
    result = _get_result(results, way, "1")
    assert result.ledger["handoff_energy_share"] == pytest.approx(1.0, abs=1e-6)
    sparse, handoff = (result.evaluations[at]["loss"] for at in ("sparse", "handoff"))
    assert handoff == pytest.approx(sparse, rel=1e-5)


def test_folding_loses_nothing_either(results):
    evaluations = _get_result(results, "fold", "1").evaluations
    assert evaluations["handoff"]["loss"] == pytest.approx(evaluations["sparse"]["loss"], abs=1e-5)


def test_a_residual_beside_the_factors_changes_the_loss_and_the_base_gets_its_bits_back(
    results,
):
    preserved, dropped = (
        _get_result(results, way, "1").evaluations["handoff"] for way in ("keep", "gradient")
    )
    assert preserved["loss"] != dropped["loss"]
    assert (
        _get_result(results, "keep", "1").base_untouched
        and _get_result(results, "keep", "cluster").base_untouched
    )


@pytest.mark.parametrize("way", ["pissa", "lora-ga"])
def test_an_init_that_is_subtracted_from_the_base_leaves_the_model_as_it_was(results, way):
    before = _get_result(results, way, "1").evaluations["before"]["loss"]
    assert before == pytest.approx(
        _get_result(results, "rslora", "1").evaluations["before"]["loss"], rel=1e-5
    )


def test_compact_factors_are_stored_by_the_values_on_their_masks_alone(results, folder, tmp_path):
    store = open_store(f"file://{folder / 'store'}")
    manifest = resolve_adapter(store, _make_name("compact factors"))
    pulled = pull(store, manifest, tmp_path / "adapter")
    adapter = read_adapter(pulled)
    for a_RI, b_OR in adapter.factors.values():
        assert int((a_RI != 0).sum()) == round(a_RI.numel() / 2)
        assert int((b_OR != 0).sum()) == round(b_OR.numel() / 2)
    tensors = load_file(pulled / "sparse_model.safetensors")
    assert all(name.endswith(".values") for name in tensors)
    trained = _get_result(results, "compact factors", "1").ledger["low-rank_trainable"]
    assert sum(tensor.numel() for tensor in tensors.values()) == trained


def test_a_hand_off_to_masked_factors_is_that_to_whole_ones(results, folder, tmp_path):
    masked, whole = (_get_result(results, way, "1") for way in ("sparse factors", "gradient"))
    assert masked.evaluations["handoff"] == whole.evaluations["handoff"]
    assert masked.evaluations["end"] != whole.evaluations["end"]
    assert masked.ledger["low-rank_trainable"] == whole.ledger["low-rank_trainable"] / 2


@pytest.mark.parametrize("way", ["sparse factors", "sparse factors alone"])
def test_stock_peft_has_our_logits_with_sparse_factors(results, folder, tmp_path, way):
    """After a hand-off, whose factors are whole, and from LoRA's own start, where most are zero."""
    store = open_store(f"file://{folder / 'store'}")
    manifest = resolve_adapter(store, _make_name(way))
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    ids = torch.randint(5, 60, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        untrained = base(input_ids=ids).logits
        stock = PeftModel.from_pretrained(base, pull(store, manifest, tmp_path / "adapter")).eval()
        theirs = stock(input_ids=ids).logits
        ours = load_adapted_model(store, _make_name(way)).model(input_ids=ids).logits
    assert (theirs - ours).abs().max() < 1e-5
    assert (untrained - ours).abs().max() > 1e-3


def test_gates_prune_ranks_down_to_the_density(results, folder, tmp_path):
    store = open_store(f"file://{folder / 'store'}")
    adapter = read_adapter(
        pull(store, resolve_adapter(store, _make_name("gates")), tmp_path / "adapter")
    )
    for _, b_OR in adapter.factors.values():
        assert int((b_OR.abs().sum(0) > 0).sum()) == 2


def test_layers_that_compete_use_the_full_budget(results):
    def nnz(way: str) -> float:
        return _get_result(results, way, "1").ledger["sparse_trainable"]

    assert nnz("global") == nnz("fisher")
    shares = {
        way: sorted(_get_result(results, way, "1").masks[0].values())
        for way in ("global", "fisher")
    }
    assert shares["global"] != shares["fisher"]


@pytest.mark.parametrize("way", ["keep", "fold", "sparse fisher", "gates", "gpt2 keep"])
def test_a_compact_adapter_exports_to_a_lora_that_retains_the_requested_share(
    results, folder, tmp_path, capsys, way
):
    store = f"file://{folder / 'store'}"
    words = [
        "--adapter",
        _make_name(way),
        "--store",
        store,
        "--to",
        str(tmp_path / "lora"),
        "--json",
    ]
    assert export(["--energy", "0.9", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["energy_share"] >= 0.9 and report["rank"] >= 1
    adapter = read_adapter(tmp_path / "lora")
    assert isinstance(adapter, LoraAdapter) and adapter.conv1d == ("gpt2" in way)
    assert export(["--rank", "4", *words]) == 2
    assert "not empty" in capsys.readouterr().err


def test_an_adapter_exports_to_a_sparse_file_and_to_a_plain_model(
    results, folder, tmp_path, capsys
):
    store = f"file://{folder / 'store'}"
    words = ["--adapter", _make_name("pissa"), "--store", store]
    sparse = ["--as", "sparse", "--density", "0.5", "--to", str(tmp_path / "sparse")]
    assert export([*words, *sparse]) == 0
    assert "retained energy of the update" in capsys.readouterr().out
    assert isinstance(read_adapter(tmp_path / "sparse"), SparseAdapter)
    assert export([*words, "--as", "merged", "--to", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "output"),
    [
        pytest.param([], "--rank: a LoRA needs either a rank", id="neither"),
        pytest.param(["--rank", "2", "--energy", "0.5"], "--rank 16 or --energy", id="both"),
        pytest.param(["--rank", "0"], "0 is not a rank", id="rank 0"),
        pytest.param(["--energy", "1.5"], "1.5 is not a share", id="energy"),
        pytest.param(["--as", "sparse", "--rank", "2"], "has no effect", id="rank of a sparse one"),
        pytest.param(["--as", "sparse"], "set a density", id="no density"),
    ],
)
def test_an_impossible_export_is_refused_with_a_message(
    results, folder, tmp_path, capsys, words, output
):
    store = ["--store", f"file://{folder / 'store'}", "--to", str(tmp_path / "out")]
    assert export(["--adapter", _make_name("rslora"), *store, *words]) == 2
    assert output in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_adapters_are_compared(results, folder, capsys):
    store = ["--store", f"file://{folder / 'store'}"]
    pair = [
        "--adapter",
        _make_name("sparse fisher"),
        "--other",
        _make_name("sparse blocks"),
        *store,
    ]
    assert diff([*pair, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["facts"]["mask"] == ["fisher", "blocks"]
    assert all(0 <= layer["overlap"] < 1 for layer in report["layers"])
    distances = [layer["distance"] for layer in report["layers"]]
    assert distances == sorted(distances, reverse=True)
    assert diff(pair) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "2 layers that differ less" in lines[-1]
    other = ["--adapter", _make_name("sparse fisher"), "--other", _make_name("gpt2 fisher"), *store]
    assert diff(other) == 0
