"""The kernel for CPUs that reads tokens as they lie, compiled by numba.

N: tokens. O, I: rows and columns of the weight. Z: entries of the mask.

A tile of tokens of x, and of some columns of g at a time, is transposed into a buffer that fits the
processor's cache, in float32 whatever the operands' dtype; each entry then adds the dot product of
two of its columns. No operand is ever copied or converted in full.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic
from torch import Tensor

from slora.kernels.pattern import EntryPattern

TILE = 64
"""Tokens in a tile: 512 KB of a layer that is 2,048 wide, in a second-level cache of 1 or 2 MB."""
BLOCK = 16
"""Tokens and columns that are transposed together: one line of the cache in float32."""
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


def _define_block_transpose(
    _: Any, source: Any, token: Any, feature: Any, tile: Any, row: Any, column: Any
) -> Any:
    """Define a function that copies a block of `[N, F]`, transposed, to a row and column of a tile.

    A loop would move number by number, which takes longer than the dot products. Here each of
    log2(BLOCK) rounds exchanges halves of rows in the processor's registers.
    """
    signature = types.void(source, token, feature, tile, row, column)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        def get_row(number: int, kind: Any, array: Any, first: Any, second: Any) -> Any:
            index = builder.add(first, ir.Constant(first.type, number))
            view = context.make_array(kind)(context, builder, array)
            place = [index, second]
            return cgutils.get_item_pointer(context, builder, kind, view, place)  # type: ignore[no-untyped-call]

        number_type = context.get_data_type(source.dtype)
        row_type = ir.VectorType(number_type, BLOCK)
        bits_type = ir.VectorType(ir.IntType(32), BLOCK)
        tile_type = ir.VectorType(ir.FloatType(), BLOCK)
        rows = []
        for number in range(BLOCK):
            pointer = get_row(number, source, *arguments[:3])
            pointer = builder.bitcast(pointer, row_type.as_pointer())
            values = builder.load(pointer, align=source.dtype.bitwidth // 8)
            if source.dtype == types.uint16:
                # A bfloat16 is the upper half of a float32.
                bits = builder.shl(
                    builder.zext(values, bits_type), ir.Constant(bits_type, [16] * BLOCK)
                )
                values = builder.bitcast(bits, tile_type)
            rows.append(values)
        half = BLOCK // 2
        while half:
            # Numbers of the second row of a pair count from BLOCK.
            upper = [n + BLOCK - half if n & half else n for n in range(BLOCK)]
            lower = [n + BLOCK if n & half else n + half for n in range(BLOCK)]
            for number in range(BLOCK):
                if not number & half:
                    pair = rows[number], rows[number + half]
                    rows[number], rows[number + half] = (
                        builder.shuffle_vector(*pair, ir.Constant(bits_type, lanes))
                        for lanes in (upper, lower)
                    )
            half //= 2
        for number, values in enumerate(rows):
            pointer = get_row(number, tile, *arguments[3:])
            builder.store(values, builder.bitcast(pointer, tile_type.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, generate


_transpose_block: Any = intrinsic(_define_block_transpose)


@compile_function
def _transpose_tile(source: Any, first: int, start: int, end: int, tile: Any, block: Any) -> None:
    """Copy TILE tokens from the token `first` of the columns `start` to `end` into the tile.

    The tile is `[columns, TILE]`, its columns a multiple of BLOCK; what is beyond the source is 0.
    """
    tokens, features = source.shape
    for feature in range(start, end, BLOCK):
        for token in range(first, first + TILE, BLOCK):
            if token + BLOCK <= tokens and feature + BLOCK <= features:
                _transpose_block(source, token, feature, tile, feature - start, token - first)
                continue
            block[:] = 0
            for row in range(token, min(token + BLOCK, tokens)):
                for column in range(feature, min(feature + BLOCK, features)):
                    block[row - token, column - feature] = source[row, column]
            _transpose_block(block, 0, 0, tile, feature - start, token - first)


@compile_function
def _add_tiles(
    grad: Any, x: Any, starts: Any, columns: Any, x_tile: Any, values: Any, part: int, parts: int
) -> None:
    """Add the products of every `parts`-th tile, from number `part`, to the values `[Z]`."""
    grad_tile = np.empty((BLOCK, TILE), np.float32)
    block = np.empty((BLOCK, BLOCK), grad.dtype)
    for first in range(part * TILE, x.shape[0], parts * TILE):
        _transpose_tile(x, first, 0, x.shape[1], x_tile, block)
        for strip in range(0, grad.shape[1], BLOCK):
            _transpose_tile(grad, first, strip, strip + BLOCK, grad_tile, block)
            for row in range(strip, min(strip + BLOCK, grad.shape[1])):
                for entry in range(starts[row], starts[row + 1]):
                    column = columns[entry]
                    total = np.float32(0)
                    for token in range(TILE):
                        total += grad_tile[row - strip, token] * x_tile[column, token]
                    values[entry] += total


@partial(compile_function, parallel=True)
def _add_tiles_in_parallel(
    grad: Any, x: Any, starts: Any, columns: Any, x_tiles: Any, values: Any
) -> None:
    """Add the products to the values `[threads, Z]`, a row and a tile of x for each thread."""
    parts = values.shape[0]
    for part in numba.prange(parts):
        _add_tiles(grad, x, starts, columns, x_tiles[part], values[part], part, parts)


def multiply_by_tiles(grad_NO: Tensor, x_NI: Tensor, pattern: EntryPattern) -> Tensor:
    """Return the entries `[Z]`, float32, from operands in float32 or bfloat16 on the CPU.

    Uses as many threads as torch does.
    """
    grad, x = _view_as_array(grad_NO), _view_as_array(x_NI)
    starts, columns = pattern.row_starts.numpy(), pattern.columns.numpy()
    threads = _count_threads()
    values = np.zeros((threads, pattern.nnz), np.float32)
    # Memory of torch's starts at a line of the cache, so that no line is read for two columns.
    x_tiles = torch.empty(threads, -(-x.shape[1] // BLOCK) * BLOCK, TILE).numpy()
    if threads == 1:
        _add_tiles(grad, x, starts, columns, x_tiles[0], values[0], 0, 1)
        return torch.from_numpy(values[0])
    numba.set_num_threads(threads)
    _add_tiles_in_parallel(grad, x, starts, columns, x_tiles, values)
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
