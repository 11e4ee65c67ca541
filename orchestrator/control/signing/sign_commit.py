"""Sign what a run has committed, once it is proven to be that run's: its files, its spec, its name.

The job has no key. It runs code of the project, and may have written anything to the store.
"""

from __future__ import annotations

import hashlib

from jobs.errors import Fault, InputError, NotInStore, Untrusted
from jobs.inspect.recorded_spec import adopt_settled, leaves_open
from jobs.retrain.detect import make_training_spec
from jobs.spec.load import dump_spec, parse_spec
from jobs.spec.schema import RunSpec
from jobs.spec.yaml_text import MAX_BYTES
from jobs.store.adapters.listing import read_committed
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.verify import check_files
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import SPEC, format_run_key
from orchestrator.control.job_spec import load_request
from orchestrator.control.signing.service_trust import ServiceTrust
from orchestrator.registry.values import Run

REMEDY = "Submit the run again."


def sign_commit(
    store: ObjectStore, run: Run, manifest: Manifest, trust: ServiceTrust
) -> Fault | None:
    """Sign the version of a run, or return why it is not signed. Can be repeated.

    Without a key, return the fault of a signature that the policy refuses: the node should have
    signed it. Raise StoreError if the store does not answer.
    """
    if trust.signer is None:
        return _find_refusal(store, manifest) if trust.policy is not None else None
    # Imported here because cryptography is slow to import and few services sign.
    from jobs.store.trust.version_trust import is_signed, sign_version

    if is_signed(store, manifest, run.project, trust.signer):
        # The files of a large model take minutes, in which the lease may have been lost.
        return None
    if (fault := find_commit_fault(store, run, manifest)) is not None:
        return fault
    try:
        sign_version(store, manifest, run.project, trust.signer)
    except Untrusted as error:
        return Fault(error.subject, error.problem, error.remedy)
    return None


def find_commit_fault(store: ObjectStore, run: Run, manifest: Manifest) -> Fault | None:
    """Return why a version is not what its run should have committed, or None.

    A trial's manifest names its own run and the search; its spec is one of many that the search may
    try, so only its name is compared.
    """
    if run.id not in (manifest.run, manifest.search):
        return Fault(manifest.label, f"it is of run {manifest.run}, not {run.id}", REMEDY)
    if manifest.name != run.name:
        return Fault(manifest.label, f"run {run.id} makes {run.name}", REMEDY)
    if not 1 <= manifest.attempt <= run.attempt:
        problem = f"it is of attempt {manifest.attempt}; run {run.id} is at attempt {run.attempt}"
        return Fault(manifest.label, problem, REMEDY)
    if manifest.run == run.id and run.kind != "search":
        try:
            digests = _list_spec_digests(store, run, manifest)
        except InputError as error:
            return error.faults[0]
        except NotInStore as error:
            return Fault(manifest.label, f"{error.subject} is not in the store", REMEDY)
        if manifest.spec_sha256 not in digests:
            problem = f"its spec has the digest {manifest.spec_sha256[:12]}, which is not that of "
            return Fault(manifest.label, f"{problem}the spec of run {run.id}", REMEDY)
    faults = check_files(store, manifest)
    return faults[0] if faults else None


def _list_spec_digests(store: ObjectStore, run: Run, manifest: Manifest) -> set[str]:
    """Return the digests that the manifest may have: those of the fine-tune of the run's request.

    A retraining from an adapter trains a LoRA where the spec says slora. A dtype or a rate that is
    auto is a value in the committed spec, as the run has settled it.
    """
    request = load_request(store, run)
    training = parse_spec(request.spec_text, f"run {run.id}").training
    specs = [training]
    if run.kind == "retrain":
        specs.append(make_training_spec(training, manifest.parent))
    if leaves_open(training):
        recorded = _read_recorded(store, run)
        specs = [adopt_settled(spec, recorded) for spec in specs]
    return set(map(_digest, specs))


def _read_recorded(store: ObjectStore, run: Run) -> RunSpec:
    """Read the spec that the job has written: at most as much as a spec may have."""
    key = format_run_key(run.id, SPEC)
    return parse_spec(store.read(key, 0, MAX_BYTES).decode(errors="replace"), key)


def _digest(spec: RunSpec) -> str:
    return hashlib.sha256(dump_spec(spec).encode()).hexdigest()


def _find_refusal(store: ObjectStore, manifest: Manifest) -> Fault | None:
    try:
        read_committed(store, manifest.name, manifest.version)
    except Untrusted as error:
        return Fault(error.subject, error.problem, error.remedy)
    return None
