"""The dtype of a retraining with `model.dtype: auto`: that of the adapter in use. No torch.

The versions of an adapter are compared with one another, and one starts from the other.
"""

from __future__ import annotations

from jobs.errors import InputError, StoreError, Untrusted
from jobs.plan.dtype_choice import AUTO, DtypeChoice
from jobs.spec.schema import RunSpec
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.base import ObjectStore


def find_inherited_dtype(spec: RunSpec, store: ObjectStore) -> DtypeChoice | None:
    """Return the dtype that the current adapter was trained in.

    Return None if the spec sets one, or there is no adapter, or its manifest is of an earlier
    release, which recorded none.
    """
    if spec.model.dtype != AUTO:
        return None
    try:
        manifest = resolve_adapter(store, spec.name)
    except Untrusted:
        raise
    except (InputError, StoreError):
        return None
    if manifest.base.dtype is None:
        return None
    reason = f"{manifest.label} was trained in it"
    return DtypeChoice(manifest.base.dtype, is_auto=True, reason=reason)
