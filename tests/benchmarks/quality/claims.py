"""Every claim about quality that the pages make, as data, checked against the results files.

A claim is made where its words stand in its page; where they do not, it is a goal, listed beside
the others. Results of the first benchmark (80 steps, one rate for adapter and head) are read from
their own file, and so are those of federations.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.quality.corpora import CORPORA, Corpus
from tests.benchmarks.quality.results_file import RESULTS, Results, read_results
from tests.benchmarks.quality.schedule import Pair, find_lines
from tests.benchmarks.quality.summary import compute_handoff_loss
from tests.benchmarks.quality.variants import BY_NAME, DEFAULT_SLORA, WIDE_SLORA

FIRST_RESULTS = Path("docs/measured/quality.jsonl")
FEDERATED_RESULTS = Path("docs/measured/paper.jsonl")
ABOVE, BEYOND_SPREAD, WITHIN_NOISE, HANDOFF, BEST = (
    "above", "beyond spread", "within noise", "hand-off", "best",
)  # fmt: skip
POINT = {"accuracy": 0.01, "loss": 0.02}
"""What "within a point" means: of accuracy, and in nats."""
Sample = Sequence[float]
"""A test figure by seed."""


@dataclass(frozen=True)
class Claim:
    """One statement about one data set."""

    name: str
    source: str
    """quality | first | federated: the file that it is read from."""
    data: str
    kind: str
    method: str
    reference: str = ""
    margin: float = 0.0
    """above: the least difference in the better direction; hand-off: the largest share lost."""
    page: str = ""
    quote: str = ""
    """Words of the page that make the claim."""


@dataclass(frozen=True)
class CheckedClaim:
    """A claim beside what the results say."""

    claim: Claim
    is_made: bool
    figure: float | None
    """None where the results are not there."""
    bound: float | None
    seeds: tuple[int, ...]
    """The number of seeds of the method, and of the reference."""
    held: bool | None

    def describe(self) -> dict[str, Any]:
        """Return the claim as JSON's values."""
        claim = self.claim
        sides = [claim.method, *([claim.reference] if claim.reference else [])]
        return {
            "claim": claim.name, "page": claim.page or None, "made": self.is_made,
            "kind": claim.kind, "source": claim.source, "data": claim.data, "methods": sides,
            "figure": self.figure, "bound": self.bound, "seeds": list(self.seeds),
            "held": self.held,
        }  # fmt: skip


def _list_goals() -> Iterator[Claim]:
    for corpus in CORPORA.values():
        name, slora = corpus.name, WIDE_SLORA
        point = -POINT[corpus.metric]
        yield Claim(f"{name}: slora is at least as good as LoRA at equal counts", "quality", name,
                    ABOVE, slora, "lora r4")  # fmt: skip
        yield Claim(f"{name}: slora is above LoRA beyond the spread", "quality", name,
                    BEYOND_SPREAD, slora, "lora r4")  # fmt: skip
        yield Claim(f"{name}: slora is within a point of full fine-tuning, or above", "quality",
                    name, ABOVE, slora, "full", point)  # fmt: skip
        yield Claim(f"{name}: the hand-off loses at most a tenth of the gain", "quality", name,
                    HANDOFF, slora, margin=0.1)  # fmt: skip
        yield Claim(f"{name}: so does the hand-off at the default rank", "quality", name,
                    HANDOFF, DEFAULT_SLORA, margin=0.1)  # fmt: skip
        for ours, theirs in (("lora r4", "peft lora r4"), ("sparse", "peft shira r4")):
            yield Claim(f"{name}: {ours} is within noise of {theirs}", "quality", name,
                        WITHIN_NOISE, ours, theirs)  # fmt: skip
        for method in ("lora r4", "sparse"):
            yield Claim(f"{name}: {method} ends in bfloat16 where it ends in float32", "quality",
                        name, WITHIN_NOISE, method, f"{method} float32")  # fmt: skip


RESULTS_PAGE, PAPER_PAGE = "docs/results/results.md", "docs/results/paper.md"
FIRST_CLAIMS = (
    Claim("sparse values are 13 points above LoRA after 80 steps", "first", "newsgroups", ABOVE,
          "sparse random", "lora", 0.13, RESULTS_PAGE, "13 points above LoRA"),
    Claim("folding ends 6 points higher", "first", "newsgroups", ABOVE, "slora random, fold",
          "slora random", 0.06, RESULTS_PAGE, "accuracy is 6 points higher"),
    Claim("chat: LoRA is better than SLoRA with a random mask", "first", "chat", ABOVE, "lora",
          "slora random", 0.0, RESULTS_PAGE, "SLoRA with a random mask is the **worst** of all"),
    Claim("chat: full fine-tuning is the best", "first", "chat", BEST, "full", "", 0.0,
          RESULTS_PAGE, "full fine-tuning | 1.2e-4 | **2.637**"),
)  # fmt: skip
POOLED_CLAIMS = (
    Claim("newsgroups: LoRA is as good as SLoRA", "quality", "newsgroups", ABOVE,
          "lora r4", WIDE_SLORA, 0.0, "README.md", "LoRA was as good as SLoRA on one"),
    Claim("chat: LoRA is better than SLoRA beyond the spread", "quality", "chat",
          BEYOND_SPREAD, "lora r4", WIDE_SLORA, 0.0, "README.md", "and better on another"),
)  # fmt: skip
FEDERATED = "dirichlet-0.1"
OWN_HEAD = "own head rate"
LATE, SPARSE = f"slora r128 late, {OWN_HEAD}", f"sparse, {OWN_HEAD}"
WIDER_LORA, EQUAL_LORA = f"lora, {OWN_HEAD}", f"lora r2, {OWN_HEAD}"
"""Of rank 8, with three times the bytes; of rank 2, with about as many."""
FEDERATED_CLAIMS = (
    Claim("federated: SLoRA is at least 5 points above LoRA", "federated", FEDERATED, ABOVE,
          LATE, EQUAL_LORA, 0.05),
    Claim("federated: SLoRA is above full fine-tuning", "federated", FEDERATED, ABOVE,
          LATE, f"full, {OWN_HEAD}"),
    Claim("federated: a head rate of its own takes LoRA 37 points further", "federated", FEDERATED,
          ABOVE, WIDER_LORA, "lora", 0.37, PAPER_PAGE, "goes from .222 to .593"),
    Claim("federated: sparse values have the accuracy of a wider LoRA", "federated", FEDERATED,
          ABOVE, SPARSE, WIDER_LORA, -0.005, PAPER_PAGE,
          "Sparse values reach what LoRA of rank 8 reaches"),
    Claim("federated: sparse values are 3 points above LoRA with about the same bytes",
          "federated", FEDERATED, ABOVE, SPARSE, EQUAL_LORA, 0.03, PAPER_PAGE,
          "end 3 points above LoRA of rank 2"),
    Claim("federated: the hand-off after the last round loses nothing", "federated", FEDERATED,
          ABOVE, LATE, SPARSE, -0.005, PAPER_PAGE, "loses nothing (.593 to .592)"),
)  # fmt: skip
"""All at head rates of their own: those at one rate for adapter and head are withdrawn."""
CLAIMS: tuple[Claim, ...] = (
    *_list_goals(), *FIRST_CLAIMS, *POOLED_CLAIMS, *FEDERATED_CLAIMS,
)  # fmt: skip


def list_pairs(claims: Sequence[Claim] = CLAIMS) -> list[Pair]:
    """Return what the claims compare: where spreads overlap, more seeds are run."""
    pairs = [
        (claim.data, claim.method, claim.reference)
        for claim in claims
        if claim.source == "quality" and claim.kind in (ABOVE, BEYOND_SPREAD)
    ]
    return list(dict.fromkeys(pairs))


def check_claims(results: Results, *, root: Path = Path()) -> list[CheckedClaim]:
    """Return every claim with its figure. `results` are those of this benchmark."""
    samples = {
        "first": read_first_samples(root / FIRST_RESULTS),
        "federated": read_federated_samples(root / FEDERATED_RESULTS),
        "quality": _collect_samples(results),
    }
    return [
        check_claim(claim, samples[claim.source], results, is_made=is_made(claim, root))
        for claim in CLAIMS
    ]


def find_fallen(checked: Sequence[CheckedClaim]) -> list[CheckedClaim]:
    """Return the claims that pages make and that do not hold, or that have no results."""
    return [one for one in checked if one.is_made and not one.held]


def is_made(claim: Claim, root: Path) -> bool:
    """Return whether the words of the claim stand in its page, however its lines break."""
    path = root / claim.page
    if not claim.page or not path.exists():
        return False
    return " ".join(claim.quote.split()) in " ".join(path.read_text(encoding="utf-8").split())


Samples = Mapping[tuple[str, str], Sample]
"""Test figures by data set and method."""


def check_claim(
    claim: Claim, samples: Samples, results: Results, *, is_made: bool = False
) -> CheckedClaim:
    """Return the claim beside its figure."""
    corpus = CORPORA.get(claim.data)
    sign = -1 if corpus is not None and corpus.metric == "loss" else 1
    method = samples.get((claim.data, claim.method), ())
    reference = samples.get((claim.data, claim.reference), ())
    seeds: tuple[int, ...] = (len(method), len(reference)) if claim.reference else (len(method),)
    figure, bound, held = None, None, None
    if claim.kind == HANDOFF and corpus is not None:
        lines = find_lines(corpus, BY_NAME[claim.method], results)
        lost = [v for line in lines if "evaluations" in line
                and (v := compute_handoff_loss(line)) is not None]  # fmt: skip
        if lost:
            figure, bound = statistics.fmean(lost), claim.margin
            held = figure <= bound
    elif claim.kind == BEST and method:
        others = [
            sign * statistics.fmean(sample)
            for (data, name), sample in samples.items()
            if data == claim.data and name != claim.method
        ]
        figure, bound = sign * statistics.fmean(method), max(others)
        held = figure >= bound
    elif claim.kind == WITHIN_NOISE and method and reference:
        figure, bound = _compare_noise(claim, corpus, method, reference, results)
        held = None if figure is None or bound is None else figure <= bound
    elif claim.kind in (ABOVE, BEYOND_SPREAD) and method and reference:
        figure, bound = _compare(claim, method, reference, sign)
        held = figure > bound if claim.kind == BEYOND_SPREAD else figure >= bound
    return CheckedClaim(claim, is_made, figure, bound, seeds, held)


def _compare(claim: Claim, method: Sample, reference: Sample, sign: int) -> tuple[float, float]:
    if claim.kind == ABOVE:
        return sign * (statistics.fmean(method) - statistics.fmean(reference)), claim.margin
    # The worst seed of the one against the best of the other.
    return min(sign * v for v in method) - max(sign * v for v in reference), 0.0


def _compare_noise(
    claim: Claim, corpus: Corpus | None, method: Sample, reference: Sample, results: Results
) -> tuple[float | None, float | None]:
    """Return the difference of the means and the larger of the two spreads.

    A reference that ran at the start of the grids is compared with the run at the same point, from
    the same seed.
    """
    spread = max(max(sample) - min(sample) for sample in (method, reference))
    variant = BY_NAME.get(claim.reference)
    if variant is None or not variant.at_start or corpus is None:
        return abs(statistics.fmean(method) - statistics.fmean(reference)), spread
    (line,) = find_lines(corpus, variant, results)[:1]
    twin = [
        other["test"]
        for other in results.values()
        if (other.get("data"), other.get("method")) == (claim.data, claim.method)
        and other["rates"] == line["rates"] and other["seed"] == line["seed"] and "test" in other
    ]  # fmt: skip
    return (abs(twin[0] - line["test"]), spread) if twin else (None, None)


def _collect_samples(results: Results) -> dict[tuple[str, str], Sample]:
    return {
        (corpus.name, variant.name): [line["test"] for line in lines if "test" in line]
        for corpus in CORPORA.values()
        for variant in BY_NAME.values()
        if (lines := find_lines(corpus, variant, results))
    }


def read_first_samples(path: Path) -> dict[tuple[str, str], Sample]:
    """Return the figures of the first benchmark, at the rates with the best validation figure on
    the first seed.
    """
    by_method = defaultdict[tuple[str, str], list[Mapping[str, Any]]](list)
    for line in read_results(path).values():
        if "rival" in line and "test" in line:
            by_method[line["part"], line["rival"]].append(line)
    samples = dict[tuple[str, str], Sample]()
    for (part, method), lines in by_method.items():
        sign = 1 if part == "newsgroups" else -1
        first = [line for line in lines if line["seed"] == 0]
        best = max(first, key=lambda line: (sign * line["validation"], -line["rates"][1]))
        samples[part, method] = [r["test"] for r in lines if r["rates"] == best["rates"]]
    return samples


def read_federated_samples(path: Path) -> dict[tuple[str, str], Sample]:
    """Return the figures of the federations of newsgroups, by partition and method."""
    from tests.benchmarks.paper.order import results as find_results
    from tests.benchmarks.paper.plan import RIVALS, SIZES

    done, part = read_results(path), SIZES["small"]["newsgroups"]
    return {
        (partition, rival.name): [line["test"] for line in lines]
        for partition in part.partitions
        for rival in RIVALS
        if part.name in rival.parts and (lines := find_results(part, partition, rival, done))
    }


def read_claims(path: Path = RESULTS) -> list[CheckedClaim]:
    """Return the claims against the file of results."""
    return check_claims(read_results(path))
