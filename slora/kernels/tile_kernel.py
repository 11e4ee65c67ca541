"""The kernel for CPUs that reads tokens as they lie, compiled by numba.

N: tokens. O, I: rows and columns of the weight. Z: entries of the mask.

A tile of tokens of both operands is transposed into a buffer that fits the processor's cache, in
float32 whatever the operands' dtype; each entry then adds the dot product of two of its columns. No
operand is ever copied or converted in full.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from slora.kernels.pattern import EntryPattern

TILE = 64
"""Tokens in a tile: 512 KB of a layer that is 2,048 wide, in a second-level cache of 1 or 2 MB."""
STRIP = 16
"""Columns that are transposed together: one line of the cache in float32."""
SUPPORTED_DTYPES = (torch.float32, torch.bfloat16)
_numba_config: Any = numba.config


def compile_function(function: Any, **options: Any) -> Any:
    """Return the function compiled by numba, cached on disk where a folder can be written."""
    # The order of a sum may change, to add several tokens at once; NaN and infinity keep their
    # meaning.
    options |= {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Neither beside this file nor in a folder of the user's: compiled in each process.
        return numba.njit(**options)(function)


@compile_function
def _transpose_tile(source: Any, first: int, tile: Any, tile_bits: Any, is_bfloat16: bool) -> None:
    """Copy TILE tokens `[TILE, F]` from the token `first` into the tile `[F, TILE]`."""
    tokens, features = source.shape
    last = min(first + TILE, tokens)
    for strip in range(0, features, STRIP):
        strip_end = min(strip + STRIP, features)
        for token in range(first, last):
            for feature in range(strip, strip_end):
                if is_bfloat16:
                    # A bfloat16 is the upper half of a float32.
                    bits = np.uint32(source[token, feature]) << np.uint32(16)
                    tile_bits[feature, token - first] = bits
                else:
                    tile[feature, token - first] = source[token, feature]
    if last < first + TILE:
        tile[:, last - first :] = 0


@compile_function
def _add_tiles(
    grad: Any, x: Any, starts: Any, columns: Any, values: Any, part: int, parts: int,
    is_bfloat16: bool,
) -> None:  # fmt: skip
    """Add the products of every `parts`-th tile, from number `part`, to the values `[Z]`."""
    grad_tile = np.empty((grad.shape[1], TILE), np.float32)
    x_tile = np.empty((x.shape[1], TILE), np.float32)
    grad_bits, x_bits = grad_tile.view(np.uint32), x_tile.view(np.uint32)
    for first in range(part * TILE, x.shape[0], parts * TILE):
        _transpose_tile(grad, first, grad_tile, grad_bits, is_bfloat16)
        _transpose_tile(x, first, x_tile, x_bits, is_bfloat16)
        for row in range(grad.shape[1]):
            for entry in range(starts[row], starts[row + 1]):
                column = columns[entry]
                total = np.float32(0)
                for token in range(TILE):
                    total += grad_tile[row, token] * x_tile[column, token]
                values[entry] += total


@partial(compile_function, parallel=True)
def _add_tiles_in_parallel(
    grad: Any, x: Any, starts: Any, columns: Any, values: Any, is_bfloat16: bool
) -> None:
    """Add the products to the values `[threads, Z]`, a row for each thread."""
    for part in numba.prange(values.shape[0]):
        _add_tiles(grad, x, starts, columns, values[part], part, values.shape[0], is_bfloat16)


def multiply_by_tiles(grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern) -> Tensor:
    """Return the entries `[Z]`, float32, from operands in float32 or bfloat16 on the CPU.

    Uses as many threads as torch does.
    """
    grad, x = _view_as_array(grad_NO), _view_as_array(x_NI)
    starts, columns = pattern.row_starts.numpy(), pattern.columns.numpy()
    is_bfloat16 = x_NI.dtype == torch.bfloat16
    threads = _count_threads()
    values = np.zeros((threads, pattern.nnz), np.float32)
    if threads == 1:
        _add_tiles(grad, x, starts, columns, values[0], 0, 1, is_bfloat16)
        return torch.from_numpy(values[0])
    numba.set_num_threads(threads)
    _add_tiles_in_parallel(grad, x, starts, columns, values, is_bfloat16)
    return torch.from_numpy(values).sum(0)


def _view_as_array(tensor: Tensor) -> Any:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def _count_threads() -> int:
    """Return how many threads to use: as many as torch, or one where numba's may not be called.

    Its own thread pool aborts the process when two threads call it at once; OpenMP and TBB do not.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not _has_safe_threads():
        return 1
    return min(threads, int(_numba_config.NUMBA_NUM_THREADS))


@cache
def _has_safe_threads() -> bool:
    _numba_config.THREADING_LAYER = "threadsafe"
    threads = torch.get_num_threads()
    try:
        numba.set_num_threads(1)
    except ValueError:
        return False
    finally:
        # Numba's OpenMP may be torch's own, and its start sets that to all processors.
        torch.set_num_threads(threads)
    return True
