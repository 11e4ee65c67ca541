"""`python -m jobs.tools.hub.push --adapter NAME --to hf://ORG/REPO`: publish an adapter.

One commit holds all of it, so a reader of the repository sees the old adapter or the new one, and a
push that failed can be repeated: large files that arrived are not sent again. The hub is the one of
HF_ENDPOINT, and the token that of HF_TOKEN or its file; neither is printed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError, NotInStore, Unreachable
from jobs.plan.audit import AuditLine, compare_with_plan
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.adapters.serving_options import (
    find_task,
    list_serving_options,
    read_adapter_config,
)
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import LEDGER, PLAN, RunStore
from jobs.tools.adapter_arguments import make_adapter_parser
from jobs.tools.hub.model_card import CARD, make_card
from jobs.train.job_main import run_job

ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # The protocol of git LFS, which every hub has: an adapter is small.
    "HF_HUB_DISABLE_XET": "1",
}
"""Read by huggingface_hub when it is imported."""
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "sparse_config.json",
    "sparse_model.safetensors",
    "labels.json",
    "manifest.sig",
)
"""Files of an adapter in any form: what the new version does not have of them is removed."""
MAX_QUOTED = 300
_ADDRESS = re.compile(r"hf://([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})/?")
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Push one adapter. Exit codes as in `jobs.finetune`."""
    parser = make_adapter_parser("jobs.tools.hub.push", "Publish a committed adapter on a hub.")
    parser.add_argument("--to", required=True, help="hf://ORGANISATION/REPOSITORY")
    parser.add_argument("--license", help="The hub's identifier of its licence: apache-2.0 ...")
    parser.add_argument("--json", action="store_true", help="Output JSON.")
    options = parser.parse_args(arguments)

    def work() -> None:
        repository = parse_address(options.to)
        licence = _check_licence(options.license)
        store = open_store(options.store)
        manifest = resolve_adapter(store, options.adapter)
        with tempfile.TemporaryDirectory(prefix="slora-push-") as scratch:
            folder = pull(store, manifest, Path(scratch) / "adapter")
            (folder / CARD).write_text(_write_card(store, manifest, licence), encoding="utf-8")
            url = push_folder(folder, repository, message=manifest.label)
        if manifest.base.revision is None:
            problem = f"{manifest.label} names the base {manifest.base.path}, which is not on a hub"
            print(f"{problem}: a reader has to know which model that is.", file=sys.stderr)
        if options.json:
            print(json.dumps({"adapter": manifest.label, "repository": repository, "url": url}))
        else:
            print(f"{manifest.label} pushed: {url}")

    return run_job(work, environment=ENVIRONMENT)


def parse_address(address: str) -> str:
    """Return ORGANISATION/REPOSITORY of an address. Raise InputError."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        problem = f"{address!r} is not a repository of a hub"
        raise InputError([Fault("TO", problem, "Use hf://ORGANISATION/REPOSITORY.")])
    return match[1]


def push_folder(folder: Path, repository: str, *, message: str) -> str:
    """Commit the files of a folder, after making the repository if there is none: a private one.

    Return the URL of the commit. Raise InputError, Unreachable.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    names = sorted(path.name for path in folder.iterdir())
    additions = [CommitOperationAdd(name, folder / name) for name in names]
    with _translate_errors(repository):
        api.create_repo(repository, private=True, exist_ok=True)
        present = set(api.list_repo_files(repository))
        stale = [name for name in ADAPTER_FILES if name in present - set(names)]
        deletions = [CommitOperationDelete(name) for name in stale]
        info = api.create_commit(repository, [*additions, *deletions], commit_message=message)
    return str(info.commit_url)


def _write_card(store: ObjectStore, manifest: Manifest, licence: str | None) -> str:
    config = read_adapter_config(store, manifest)
    return make_card(
        manifest,
        task=find_task(config),
        options=list_serving_options(manifest, config),
        audit=_read_audit(store, manifest),
        licence=licence,
    )


def _read_audit(store: ObjectStore, manifest: Manifest) -> tuple[AuditLine, ...]:
    """Return the audit of the adapter's run; nothing where its files are gone, or had no plan."""
    run = RunStore(store, manifest.run)
    try:
        plan, ledger = run.read_json(PLAN), run.read_json(LEDGER)
    except NotInStore:
        return ()
    return compare_with_plan(manifest.run, plan, ledger) if plan.get("estimate") else ()


def _check_licence(licence: str | None) -> str | None:
    if licence is not None and not _LICENCE.fullmatch(licence):
        problem = f"{licence!r} is not an identifier of a licence"
        raise InputError([Fault("--license", problem, "E.g. apache-2.0, mit, llama3.1.")])
    return licence


@contextmanager
def _translate_errors(repository: str) -> Iterator[None]:
    """Raise what an error of the hub means, without its request: that has the token."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        problem = "HF_HUB_OFFLINE is set, so no hub may be asked"
        raise InputError([Fault("HF_HUB_OFFLINE", problem, "Unset it for this command.")]) from None
    except (HfHubHTTPError, httpx.HTTPError, RuntimeError, ValueError) as error:
        raise _make_error(repository, _find_cause(error)) from None


def _find_cause(error: BaseException) -> BaseException:
    """Return the error of the request that another one was raised from."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return cause or error


def _make_error(repository: str, error: BaseException) -> InputError | Unreachable:
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403):
        problem = f"the hub does not allow a push to {repository} ({status})"
        remedy = "Set HF_TOKEN, or run `hf auth login`, with a token that may write there."
        return InputError([Fault("TO", problem, remedy)])
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    reason = " ".join(str(text).split())[:MAX_QUOTED]
    if (status is None and isinstance(error, ValueError)) or (status is not None and status < 500):
        problem = f"the hub refuses the push to {repository} ({status or 'answer'}): {reason}"
        return InputError([Fault("TO", problem, "Change what it names, and push again.")])
    what = f"The push to {repository} failed ({status or 'no answer'}): {reason}"
    return Unreachable(f"{what}. Push again: what has arrived is not sent twice.")


if __name__ == "__main__":
    sys.exit(main())
