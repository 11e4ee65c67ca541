"""The manifest of an adapter: its kind, its origin and the digest of every file.

A manifest is untrusted until it is parsed: others may write to the store.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, FiniteFloat, ValidationError

from jobs.errors import StoreError
from jobs.spec.limits import NAME_PATTERN
from jobs.spec.strict_model import StrictModel
from jobs.store.strict_json import load_strictly

MAX_MANIFEST_BYTES = 4 << 20
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MAX_NAME_LENGTH = 63

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_KEY = re.compile(r"adapters/([^/]+)/v([1-9][0-9]{0,8})/manifest\.json")


def check_file_name(name: str) -> str:
    """Return the name, or raise ValueError: a pull uses it as a path."""
    # A leading dot belongs to the store (.claim) or to a tool; a manifest cannot list itself.
    if not re.fullmatch(NAME_PATTERN, name) or name in (MANIFEST, SIGNATURE):
        raise ValueError("not a valid file name in an adapter")
    return name


def _check_time(text: str) -> str:
    datetime.strptime(text, _TIME)
    return text


Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
RunId = Annotated[str, Field(pattern=NAME_PATTERN, max_length=128)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Time = Annotated[str, Field(pattern=r"^[0-9TZ:-]{20}$"), AfterValidator(_check_time)]
Section = Annotated[
    dict[Label, bool | Count | FiniteFloat | Label | None], Field(min_length=1, max_length=64)
]
"""A flat section of a spec."""
FileName = Annotated[str, Field(max_length=255), AfterValidator(check_file_name)]


def _check_base_name(name: str) -> str:
    if not name.isprintable() or name.startswith("/") or ".." in name.split("/"):
        raise ValueError("not the name of a file below a folder")
    return name


class BaseFile(StrictModel):
    """A file of the base model."""

    name: Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_check_base_name)]
    """Its path below the folder."""
    size: Count
    sha256: Digest


class BaseRecord(StrictModel):
    """The base model that the adapter was trained on."""

    path: Label
    """A hub id, an s3:// URL, or a folder of the machine that trained."""
    revision: Label | None = None
    """The commit of a hub id."""
    digest: Digest
    """The digest of `files`; without them that of config.json and the weights alone."""
    files: Annotated[tuple[BaseFile, ...], Field(max_length=10_000)] | None = None
    """Every file that is loaded; None in manifests of earlier releases."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the base's weights in the training; None in manifests of earlier releases."""

    def __str__(self) -> str:
        return f"{self.path} at {self.revision}" if self.revision else self.path


class DataRecord(StrictModel):
    """The rows that the adapter was trained on."""

    train_sha256: Digest
    eval_sha256: Digest | None = None
    row_order: Label
    """The seed and the order of the rows, in words."""
    rows: Count


class MaskRecord(StrictModel):
    """The selection of the weights that the sparse stage trained."""

    strategy: Label
    seed: Count
    density: float = Field(gt=0, le=1)


class RateRecord(StrictModel):
    """The largest learning rates of the training."""

    stages: dict[Label, FiniteFloat]
    """By the name of the stage."""
    head: dict[Label, FiniteFloat] = Field(default_factory=dict)
    """Those of a classifier's head, by the name of the stage."""
    by_rule: tuple[Label, ...] = Field(default=(), strict=False)
    """Keys of `train` that were auto."""


class AdapterFile(StrictModel):
    """A file in the folder of the adapter."""

    name: FileName
    size: Count
    sha256: Digest


class ManifestDraft(StrictModel):
    """A manifest without version, time and files, which the commit adds."""

    name: Name
    kind: Literal["slora", "lora", "sparse", "full"]
    run: RunId
    attempt: Count
    base: BaseRecord
    data: DataRecord
    mask: MaskRecord | None = None
    rates: RateRecord | None = None
    """None in manifests of earlier releases."""
    spec_sha256: Digest
    code_version: Label
    world_size: int = Field(ge=1, lt=2**31)
    parent: Label | None = None
    """The adapter that the training started from, as NAME@vN."""
    search: RunId | None = None
    """The search whose best trial this adapter is."""
    federation: Section | None = None
    """The federation section of the spec; None if no federation trained the adapter."""
    evaluation: dict[Label, dict[Label, FiniteFloat]] = Field(default_factory=dict)
    """Stage -> metric -> value, in the order of the stages. Without NaN, which JSON lacks."""
    ledger: dict[Label, Count | FiniteFloat] = Field(default_factory=dict)
    """Tokens, seconds, trainable values per stage, and the parameters of the model."""


class Manifest(ManifestDraft):
    """A committed adapter."""

    format: Literal[1] = 1
    version: int = Field(ge=1, lt=10**9)
    created: Time
    files: Annotated[tuple[AdapterFile, ...], Field(min_length=1, max_length=10_000)]

    @property
    def label(self) -> str:
        """Return the name that resolves to exactly this version."""
        return f"{self.name}@v{self.version}"

    @property
    def size(self) -> int:
        """Return the total size of all files in bytes."""
        return sum(file.size for file in self.files)

    @property
    def prefix(self) -> str:
        """Return the common prefix of the keys of its files."""
        return get_version_prefix(self.name, self.version)


def detect_form(manifest: Manifest) -> str:
    """Return the format of the folder: `peft`, `compact` (values and masks) or `model`."""
    if manifest.kind == "full":
        return "model"
    names = {file.name for file in manifest.files}
    return "peft" if "adapter_config.json" in names else "compact"


BAD_MANIFEST_REMEDY = "Use another version, or publish the run again."


class BadManifest(StoreError):
    """The object under the key of a manifest is no manifest of that adapter."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key, self.problem = key, problem

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}. {BAD_MANIFEST_REMEDY}"


def get_version_prefix(name: str, version: int) -> str:
    """Return the common prefix of the keys of a version."""
    return f"adapters/{name}/v{version}/"


def get_manifest_key(name: str, version: int) -> str:
    """Return the key of a manifest, whose presence is the commit."""
    return get_version_prefix(name, version) + MANIFEST


def parse_manifest_key(key: str) -> tuple[str, int] | None:
    """Return name and version, or None for the key of another object."""
    match = _KEY.fullmatch(key)
    if match is None or len(match[1]) > MAX_NAME_LENGTH or not re.fullmatch(NAME_PATTERN, match[1]):
        return None
    return match[1], int(match[2])


def parse_manifest(data: bytes, key: str) -> Manifest:
    """Return the manifest in `data`. Raise BadManifest if it is not the one for `key`."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadManifest(key, f"{len(data)} bytes exceed the limit of {MAX_MANIFEST_BYTES}")
    try:
        # Parsed twice: the parser of pydantic accepts duplicate names.
        load_strictly(data)
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in first["loc"]) or "manifest"
        # Cut short and in ASCII: the message may quote untrusted text.
        raise BadManifest(key, f"{location[:100]!a}: {first['msg'][:200]!a}") from error
    except ValueError as error:
        raise BadManifest(key, f"invalid JSON: {str(error)[:200]!a}") from error
    _check_files(manifest, key)
    key_parts = parse_manifest_key(key)
    if key_parts is not None and key_parts != (manifest.name, manifest.version):
        raise BadManifest(key, f"this is the manifest of another adapter, {manifest.label}")
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest as JSON, the inverse of `parse_manifest`."""
    return manifest.model_dump_json(indent=2).encode() + b"\n"


def format_time(moment: datetime) -> str:
    """Return a time in the format of manifests: UTC, in seconds."""
    return moment.astimezone(UTC).strftime(_TIME)


def _check_files(manifest: Manifest, key: str) -> None:
    names = set[str]()
    for file in manifest.files:
        # Case-folded: on some file systems `A` and `a` are the same file.
        if file.name.casefold() in names:
            raise BadManifest(key, f"the file {file.name} is listed twice")
        names.add(file.name.casefold())
