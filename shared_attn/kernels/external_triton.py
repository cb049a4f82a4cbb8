"""Triton kernels of external attention; `external_launch` calls them, nothing else does.

Legend: B batch, N tokens, C channels, S memory slots, T tiles of tokens in a sample; tiles are BLOCK_N tokens by
BLOCK_C channels by BLOCK_S slots (all slots, padded to a power of two).

    column_partials    x -> logsumexp of each slot over each tile (B, T, S), and the logits (B, N, S) where kept
    combine_partials   those -> L (B, S); where a sample has few tiles `attend` does it itself
    attend             logits, or x again -> y = [relu]([x +] [gate *] (softmax_s(logits - L) V + bias))
    slot_gradients     dy, logits or x -> dz (B, N, S) and its sums over each tile (B, T, S)
    token_gradients    dy, dz, logits, x -> dx, and the gradients of the memories summed over the tiles of a program

The mathematics stand in `shared_attn.functional`. The denominator's eps is one more slot of logit log(eps) without a
value. Softmax, sums and accumulators are float32; the operands of a product have the type of x (of the output in the
value product). Nothing is added atomically, so results do not depend on the order in which programs run.
An argument that is None is a constant to the compiler: what hangs on it is not compiled.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

__all__ = ["attend", "column_partials", "combine_partials", "slot_gradients", "token_gradients"]

# The interpreter multiplies bfloat16 operands by their bit patterns, so there they are widened after rounding.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")


@triton.jit
def _dot(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ b, both of one type."""
    if _INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def _dot_weights(a, weights, accumulator, PRECISION: tl.constexpr):
    """accumulator + a @ weights in the type of a; float32 weights lose nothing to a half-precision a.

    They are split into two half-precision terms, which together carry twice the mantissa.
    """
    if a.dtype == tl.float32:
        accumulator = _dot(a, weights.to(tl.float32), accumulator, PRECISION)
    else:
        high = weights.to(a.dtype)
        accumulator = _dot(a, high, accumulator, PRECISION)
        if weights.dtype == tl.float32:
            low = (weights - high.to(tl.float32)).to(a.dtype)
            accumulator = _dot(a, low, accumulator, PRECISION)
    return accumulator


@triton.jit
def _load_tokens(x, stride_n, stride_c, active, active_stride_n, active_stride_c, tokens, channels, N, width):
    """A tile of x (.., N, width), zero past its edges and where `active`, a ReLU's output, is not positive."""
    inside = (tokens < N)[:, None] & (channels < width)[None, :]
    tile = tl.load(x + tokens[:, None] * stride_n + channels[None, :] * stride_c, mask=inside, other=0.0)
    if active is not None:
        at = tokens[:, None] * active_stride_n + channels[None, :] * active_stride_c
        tile = tl.where(tl.load(active + at, mask=inside, other=0.0).to(tl.float32) > 0, tile, 0.0)
    return tile


@triton.jit
def _project(
    x, stride_n, stride_c, active, active_stride_n, active_stride_c, weights, weights_stride_s, weights_stride_c,
    tokens, N, width, S, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A tile of tokens times weights (S, width) transposed: (BLOCK_N, BLOCK_S), zero in slots past S."""
    slots = tl.arange(0, BLOCK_S)
    product = tl.zeros((BLOCK_N, BLOCK_S), tl.float32)
    for start in range(0, width, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        tile = _load_tokens(x, stride_n, stride_c, active, active_stride_n, active_stride_c, tokens, channels, N, width)
        at = channels[:, None] * weights_stride_c + slots[None, :] * weights_stride_s
        block = tl.load(weights + at, mask=(channels < width)[:, None] & (slots < S)[None, :], other=0.0)
        product = _dot_weights(tile.to(OPERAND), block, product, PRECISION)
    return product


@triton.jit
def _real_tokens(mask, b, tokens, N):
    """Which tokens of a tile exist and are not padding."""
    real = tokens < N
    if mask is not None:
        real = real & (tl.load(mask + b * N + tokens, mask=real, other=0) != 0)
    return real


@triton.jit
def _log_sum_exp(a):
    """Over the rows; -inf where all of them are."""
    largest = tl.max(a, axis=0)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    return largest + tl.log(tl.sum(tl.exp(a - largest[None, :]), axis=0))


@triton.jit
def _combine(partials, b, S, T, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """L of a sample from its tiles: (BLOCK_S,)."""
    slots = tl.arange(0, BLOCK_S)
    log_mass = tl.full((BLOCK_S,), float("-inf"), tl.float32)
    for start in range(0, T, BLOCK_T):
        tiles = start + tl.arange(0, BLOCK_T)
        inside = (tiles < T)[:, None] & (slots < S)[None, :]
        some = tl.load(partials + (b * T + tiles[:, None]) * S + slots[None, :], mask=inside, other=float("-inf"))
        part = _log_sum_exp(some)
        larger = tl.maximum(log_mass, part)
        larger = tl.where(larger == float("-inf"), 0.0, larger)
        log_mass = larger + tl.log(tl.exp(log_mass - larger) + tl.exp(part - larger))
    return log_mass


@triton.jit
def _normalise_slots(logits, log_mass, real, log_eps, S, BLOCK_S: tl.constexpr):
    """z = logits - L and softmax_s over z and the slot of eps; -inf and 0 in slots past S, 0 at padding."""
    z = tl.where((tl.arange(0, BLOCK_S) < S)[None, :], logits - log_mass[None, :], float("-inf"))
    largest = tl.maximum(tl.max(z, axis=1), log_eps)
    mass = tl.exp(z - largest[:, None])
    attention = mass / (tl.sum(mass, axis=1) + tl.exp(log_eps - largest))[:, None]
    return z, tl.where(real[:, None], attention, 0.0)


@triton.jit
def column_partials(
    x, keys, mask, partials, logits, N, C, S, T, x_stride_b, x_stride_n, x_stride_c,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)  # one a (sample, tile)
    b = (program // T).to(tl.int64)
    tokens = (program % T) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = tl.arange(0, BLOCK_S)
    a = _project(
        x + b * x_stride_b, x_stride_n, x_stride_c, None, 0, 0, keys, C, 1,
        tokens, N, C, S, x.dtype.element_ty, PRECISION, BLOCK_N, BLOCK_C, BLOCK_S,
    )  # fmt: skip
    if logits is not None:
        at = tokens[:, None] * S + slots[None, :]
        tl.store(logits + b * N * S + at, a, mask=(tokens < N)[:, None] & (slots < S)[None, :])
    counted = tl.where(_real_tokens(mask, b, tokens, N)[:, None], a, float("-inf"))
    tl.store(partials + program.to(tl.int64) * S + slots, _log_sum_exp(counted), mask=slots < S)


@triton.jit
def combine_partials(partials, log_mass, S, T, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, BLOCK_S)
    tl.store(log_mass + b * S + slots, _combine(partials, b, S, T, BLOCK_T, BLOCK_S), mask=slots < S)


@triton.jit
def attend(
    x, keys, values, value_bias, gate, mask, partials, log_mass, logits, y, log_eps, N, C, WIDTH, S, T,
    x_stride_b, x_stride_n, x_stride_c, y_stride_b, y_stride_n, y_stride_c,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """WIDTH: channels of the output. `partials` is None where L is there already, `logits` where x is read again."""
    # One a (sample, tile), from the last to the first: what the first pass touched last is still in the cache.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    b = (program // T).to(tl.int64)
    tokens = (program % T) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = tl.arange(0, BLOCK_S)
    if partials is not None:
        mass = _combine(partials, b, S, T, BLOCK_T, BLOCK_S)
        if program % T == 0:  # for the backward
            tl.store(log_mass + b * S + slots, mass, mask=slots < S)
    else:
        mass = tl.load(log_mass + b * S + slots, mask=slots < S, other=0.0)
    if logits is not None:
        inside = (tokens < N)[:, None] & (slots < S)[None, :]
        a = tl.load(logits + b * N * S + tokens[:, None] * S + slots[None, :], mask=inside, other=0.0)
    else:
        a = _project(
            x + b * x_stride_b, x_stride_n, x_stride_c, None, 0, 0, keys, C, 1,
            tokens, N, C, S, x.dtype.element_ty, PRECISION, BLOCK_N, BLOCK_C, BLOCK_S,
        )  # fmt: skip
    real = _real_tokens(mask, b, tokens, N)
    _, attention = _normalise_slots(a, mass, real, log_eps, S, BLOCK_S)
    attention = attention.to(PRODUCT)
    for start in range(0, WIDTH, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        block = tl.load(
            values + channels[None, :] * S + slots[:, None],
            mask=(slots < S)[:, None] & (channels < WIDTH)[None, :],
            other=0.0,
        )
        tile = _dot(attention, block.to(PRODUCT), tl.zeros((BLOCK_N, BLOCK_C), tl.float32), PRECISION)
        if value_bias is not None:
            bias = tl.load(value_bias + channels, mask=channels < WIDTH, other=0.0).to(tl.float32)
            tile = tl.where(real[:, None], tile + bias[None, :], 0.0)
        if gate is not None:
            tile *= tl.load(gate).to(tl.float32)
        if RESIDUAL:
            tile += _load_tokens(
                x + b * x_stride_b, x_stride_n, x_stride_c, None, 0, 0, tokens, channels, N, C
            ).to(tl.float32)  # fmt: skip
        if RELU:
            tile = tl.where(tile < 0, 0.0, tile)  # a NaN stays one
        at = tokens[:, None] * y_stride_n + channels[None, :] * y_stride_c
        tl.store(y + b * y_stride_b + at, tile, mask=(tokens < N)[:, None] & (channels < WIDTH)[None, :])


@triton.jit
def slot_gradients(
    grad, active, x, keys, values, gate, mask, log_mass, logits, dz, column_sums, log_eps, N, C, WIDTH, S, T,
    grad_stride_b, grad_stride_n, grad_stride_c, active_stride_b, active_stride_n, active_stride_c,
    x_stride_b, x_stride_n, x_stride_c,
    KEPT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dz = a (da - <a, da>), da = gate * grad V. `active` is y behind a ReLU, or None. Not KEPT: writes the logits."""
    program = tl.program_id(0)  # one a (sample, tile)
    b = (program // T).to(tl.int64)
    tokens = (program % T) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = tl.arange(0, BLOCK_S)
    OPERAND: tl.constexpr = x.dtype.element_ty
    inside = (tokens < N)[:, None] & (slots < S)[None, :]
    at = b * N * S + tokens[:, None] * S + slots[None, :]
    if active is not None:
        active += b * active_stride_b
    da = _project(
        grad + b * grad_stride_b, grad_stride_n, grad_stride_c, active, active_stride_n, active_stride_c,
        values, 1, S, tokens, N, WIDTH, S, OPERAND, PRECISION, BLOCK_N, BLOCK_C, BLOCK_S,
    )  # fmt: skip
    if gate is not None:
        da *= tl.load(gate).to(tl.float32)
    if KEPT:
        a = tl.load(logits + at, mask=inside, other=0.0)
    else:
        a = _project(
            x + b * x_stride_b, x_stride_n, x_stride_c, None, 0, 0, keys, C, 1,
            tokens, N, C, S, OPERAND, PRECISION, BLOCK_N, BLOCK_C, BLOCK_S,
        )  # fmt: skip
        tl.store(logits + at, a, mask=inside)
    mass = tl.load(log_mass + b * S + slots, mask=slots < S, other=0.0)
    _, attention = _normalise_slots(a, mass, _real_tokens(mask, b, tokens, N), log_eps, S, BLOCK_S)
    da = attention * (da - tl.sum(attention * da, axis=1)[:, None])
    tl.store(dz + at, da, mask=inside)
    tl.store(column_sums + program.to(tl.int64) * S + slots, tl.sum(da, axis=0), mask=slots < S)


@triton.jit
def token_gradients(
    grad, active, x, keys, mask, log_mass, logits, dz, column_sums, dx, dkeys, dvalues, dbias,
    log_eps, N, C, WIDTH, S, T, TILES, TILES_EACH, CHANNEL_BLOCKS,
    grad_stride_b, grad_stride_n, grad_stride_c, active_stride_b, active_stride_n, active_stride_c,
    x_stride_b, x_stride_n, x_stride_c, dx_stride_b, dx_stride_n, dx_stride_c,
    RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One block of channels of TILES_EACH of the TILES = B T tiles. `dbias` may be None; the gate is left out."""
    program = tl.program_id(0)
    channels = (program % CHANNEL_BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
    slots = tl.arange(0, BLOCK_S)
    program = program // CHANNEL_BLOCKS
    OPERAND: tl.constexpr = x.dtype.element_ty
    by_slot = (slots < S)[:, None] & (channels < C)[None, :]
    keys_block = tl.load(keys + slots[:, None] * C + channels[None, :], mask=by_slot, other=0.0).to(OPERAND)
    dkeys_block = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    dvalues_block = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    dbias_block = tl.zeros((BLOCK_C,), tl.float32)
    for index in range(program * TILES_EACH, min((program + 1) * TILES_EACH, TILES)):
        b = (index // T).to(tl.int64)
        tokens = (index % T) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (tokens < N)[:, None] & (slots < S)[None, :]
        at = b * N * S + tokens[:, None] * S + slots[None, :]
        real = _real_tokens(mask, b, tokens, N)
        mass = tl.load(log_mass + b * S + slots, mask=slots < S, other=0.0)
        sums = tl.load(column_sums + b * S + slots, mask=slots < S, other=0.0)
        a = tl.load(logits + at, mask=inside, other=0.0)
        z, attention = _normalise_slots(a, mass, real, log_eps, S, BLOCK_S)
        from_mass = tl.where(real[:, None], tl.exp(z), 0.0) * sums[None, :]
        da = (tl.load(dz + at, mask=inside, other=0.0) - from_mass).to(OPERAND)
        grad_active = None if active is None else active + b * active_stride_b
        g = _load_tokens(
            grad + b * grad_stride_b, grad_stride_n, grad_stride_c, grad_active, active_stride_n, active_stride_c,
            tokens, channels, N, WIDTH,
        )  # fmt: skip
        rows = _load_tokens(x + b * x_stride_b, x_stride_n, x_stride_c, None, 0, 0, tokens, channels, N, C)
        dvalues_block = _dot(tl.trans(attention.to(OPERAND)), g.to(OPERAND), dvalues_block, PRECISION)
        dkeys_block = _dot(tl.trans(da), rows, dkeys_block, PRECISION)
        tile = _dot(da, keys_block, tl.zeros((BLOCK_N, BLOCK_C), tl.float32), PRECISION)
        if RESIDUAL:
            tile += g.to(tl.float32)
        if dbias is not None:
            dbias_block += tl.sum(tl.where(real[:, None], g.to(tl.float32), 0.0), axis=0)
        to = b * dx_stride_b + tokens[:, None] * dx_stride_n + channels[None, :] * dx_stride_c
        tl.store(dx + to, tile, mask=(tokens < N)[:, None] & (channels < C)[None, :])
    tl.store(dkeys + (program * S + slots[:, None]).to(tl.int64) * C + channels[None, :], dkeys_block, mask=by_slot)
    by_slot = (slots < S)[:, None] & (channels < WIDTH)[None, :]
    to = (program * S + slots[:, None]).to(tl.int64) * WIDTH + channels[None, :]
    tl.store(dvalues + to, dvalues_block, mask=by_slot)
    if dbias is not None:
        tl.store(dbias + program.to(tl.int64) * WIDTH + channels, dbias_block, mask=channels < WIDTH)
