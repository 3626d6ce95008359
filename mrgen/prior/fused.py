"""SiLU of a modulated group normalisation on a GPU, in few passes over memory and few kernels.

For an image of the batch and a group of channels, with n numbers in all,

    mean = sum x / n,     rstd = (sum x^2 / n - mean^2 + eps)^(-1/2)
    g = gamma (1 + scale),     s = beta (1 + scale) + shift
    u = a x + b,               a = g rstd,     b = s - a mean,     h = u sigmoid(u)

and backwards, with du = dh sigmoid(u) (1 + u (1 - sigmoid(u))) and the sums over pixels S1 = sum du, S2 = sum du x,

    dg = rstd (S2 - mean S1),     ds = S1
    dx = a du + c1 x + c0,        c1 = -rstd^2 sum g dg / n,              c0 = -c1 mean - rstd sum g ds / n

where the sums in c1 and c0 go over the channels of the group. Each way takes two kernels: sums over chunks of pixels,
and one pass over the numbers in which every program adds the chunks up for itself. So nothing is added up in an order
that changes, and an image does not depend on what is beside it in the batch.

PyTorch has this on a GPU as four operations, in float32 under autocast and for the channels-first order of memory only,
while convolutions take channels last. Those copies and passes were about 40 % of the time of a training step on an H100
(docs/results/2026-11-23-scaling.md).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4096  # numbers that one program holds at a time
TILES, CHUNKS = 2, 64  # that it goes through at least; in which an image is divided at most
# A kernel that is there can be started without looking at all arguments again, which takes longer than to start it.
DIRECT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6) and not triton.knobs.runtime.interpret


@triton.jit
def _columns(WIDTH: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr):
    """Which channel is in which column, SPAN columns for each group, and where there is one."""
    column = tl.arange(0, GROUPS * SPAN)
    if GROUPS * SPAN == WIDTH:
        return column, column < WIDTH
    return column // SPAN * (WIDTH // GROUPS) + column % SPAN, column % SPAN < WIDTH // GROUPS


@triton.jit
def _total(sums_at, channel, inside, WIDTH: tl.constexpr, CHUNKS: tl.constexpr):
    """The two sums of an image over its chunks, of which there are at most CHUNKS, for each channel."""
    chunk, there = tl.arange(0, CHUNKS), tl.num_programs(1)
    place = (tl.program_id(0) * there + chunk[:, None]) * 2 * WIDTH + channel[None, :]
    wanted = (chunk < there)[:, None] & inside[None, :]
    return tl.sum(tl.load(sums_at + place, wanted, 0.0), 0), tl.sum(tl.load(sums_at + place + WIDTH, wanted, 0.0), 0)


@triton.jit
def _mean(values, pixels, WIDTH: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr):
    """The sum of a group over n, of the sums over pixels of its channels, in each of their columns."""
    total = tl.sum(tl.reshape(values, (GROUPS, SPAN)), 1) / (WIDTH // GROUPS * pixels)
    return tl.reshape(tl.broadcast_to(total[:, None], (GROUPS, SPAN)), (GROUPS * SPAN,))


@triton.jit
def _moments(first, second, pixels, eps, WIDTH: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr):
    mean = _mean(first, pixels, WIDTH, GROUPS, SPAN)
    square = _mean(second, pixels, WIDTH, GROUPS, SPAN)
    return mean, 1 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)


@triton.jit
def _modulated(gamma_at, beta_at, modulation_at, channel, inside, WIDTH: tl.constexpr):
    """gamma, beta, 1 + scale and shift."""
    gamma = tl.load(gamma_at + channel, inside, 0.0).to(tl.float32)
    beta = tl.load(beta_at + channel, inside, 0.0).to(tl.float32)
    row = modulation_at + tl.program_id(0) * 2 * WIDTH + channel
    scale = 1 + tl.load(row, inside, 0.0).to(tl.float32)
    return gamma, beta, scale, tl.load(row + WIDTH, inside, 0.0).to(tl.float32)


@triton.jit
def _backward_of_silu(dh, u):
    sigmoid = 1 / (1 + tl.exp(-u))
    return dh * sigmoid * (1 + u * (1 - sigmoid))


@triton.jit
def _tile(start, channel, inside, pixels, WIDTH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr):
    """Where the numbers of the next ROWS pixels of this program's chunk are, and which of them there are."""
    pixel = tl.program_id(1) * CHUNK + start + tl.arange(0, ROWS)
    image = tl.program_id(0).to(tl.int64) * pixels * WIDTH
    return image + pixel[:, None] * WIDTH + channel[None, :], (pixel < pixels)[:, None] & inside[None, :]


@triton.jit(do_not_specialize=["pixels"])
def _sums(x_at, dh_at, sums_at, gamma_at, beta_at, modulation_at, out_at, pixels, eps, WIDTH: tl.constexpr,
          GROUPS: tl.constexpr, SPAN: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
          BACKWARD: tl.constexpr):  # fmt: skip
    """Of a chunk and each channel the sums of x and x^2, or of du and du x: out (image, chunk, 2, WIDTH)."""
    channel, inside = _columns(WIDTH, GROUPS, SPAN)
    one, two = tl.zeros((GROUPS * SPAN,), tl.float32), tl.zeros((GROUPS * SPAN,), tl.float32)
    if BACKWARD:
        first, second = _total(sums_at, channel, inside, WIDTH, CHUNKS)
        mean, rstd = _moments(first, second, pixels, eps, WIDTH, GROUPS, SPAN)
        gamma, beta, scale, shift = _modulated(gamma_at, beta_at, modulation_at, channel, inside, WIDTH)
        a = gamma * scale * rstd
        b = beta * scale + shift - a * mean
    for start in range(0, CHUNK, ROWS):
        place, wanted = _tile(start, channel, inside, pixels, WIDTH, CHUNK, ROWS)
        x = tl.load(x_at + place, wanted, 0.0).to(tl.float32)
        if BACKWARD:
            dh = tl.load(dh_at + place, wanted, 0.0).to(tl.float32)
            du = _backward_of_silu(dh, a[None, :] * x + b[None, :])
            one += tl.sum(du, 0)
            two += tl.sum(du * x, 0)
        else:
            one += tl.sum(x, 0)
            two += tl.sum(x * x, 0)
    row = out_at + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 2 * WIDTH + channel
    tl.store(row, one, inside)
    tl.store(row + WIDTH, two, inside)


@triton.jit(do_not_specialize=["pixels"])
def _apply(x_at, dh_at, sums_at, back_at, gamma_at, beta_at, modulation_at, out_at, affine_at, modulated_at, pixels,
           eps, WIDTH: tl.constexpr, GROUPS: tl.constexpr, SPAN: tl.constexpr, CHUNKS: tl.constexpr,
           CHUNK: tl.constexpr, ROWS: tl.constexpr, BACKWARD: tl.constexpr):  # fmt: skip
    """h; or dx, an image's share (image, 2, WIDTH) of the gradients of gamma and beta, and those of its modulation."""
    channel, inside = _columns(WIDTH, GROUPS, SPAN)
    first, second = _total(sums_at, channel, inside, WIDTH, CHUNKS)
    mean, rstd = _moments(first, second, pixels, eps, WIDTH, GROUPS, SPAN)
    gamma, beta, scale, shift = _modulated(gamma_at, beta_at, modulation_at, channel, inside, WIDTH)
    a = gamma * scale * rstd
    b = beta * scale + shift - a * mean
    if BACKWARD:
        ds, products = _total(back_at, channel, inside, WIDTH, CHUNKS)
        dg = rstd * (products - mean * ds)
        c1 = -rstd * rstd * _mean(gamma * scale * dg, pixels, WIDTH, GROUPS, SPAN)
        c0 = -c1 * mean - rstd * _mean(gamma * scale * ds, pixels, WIDTH, GROUPS, SPAN)
        row, once = tl.program_id(0) * 2 * WIDTH + channel, inside & (tl.program_id(1) == 0)
        tl.store(affine_at + row, scale * dg, once)
        tl.store(affine_at + row + WIDTH, scale * ds, once)
        tl.store(modulated_at + row, gamma * dg + beta * ds, once)
        tl.store(modulated_at + row + WIDTH, ds, once)
    for start in range(0, CHUNK, ROWS):
        place, wanted = _tile(start, channel, inside, pixels, WIDTH, CHUNK, ROWS)
        x = tl.load(x_at + place, wanted, 0.0).to(tl.float32)
        u = a[None, :] * x + b[None, :]
        if BACKWARD:
            dh = tl.load(dh_at + place, wanted, 0.0).to(tl.float32)
            tl.store(out_at + place, a[None, :] * _backward_of_silu(dh, u) + c1[None, :] * x + c0[None, :], wanted)
        else:
            tl.store(out_at + place, u / (1 + tl.exp(-u)), wanted)


_ready: dict[tuple[object, ...], Any] = {}  # kernels by what they were compiled for; all memory given is aligned


def _divide(width: int, pixels: int, groups: int) -> tuple[int, tuple[int, ...]]:
    """How many chunks an image has, whatever is beside it, and WIDTH, GROUPS, SPAN, CHUNKS, CHUNK and ROWS."""
    span = triton.next_power_of_2(width // groups)
    rows = TILE // (groups * span)
    chunk = rows * max(TILES, triton.next_power_of_2(triton.cdiv(pixels, CHUNKS * rows)))
    chunks = triton.cdiv(pixels, chunk)
    return chunks, (width, groups, span, triton.next_power_of_2(chunks), chunk, rows)


def _start(kernel: Any, x: Tensor, modulation: Tensor, groups: int, given: tuple[Any, ...], backward: bool) -> None:
    """Run a kernel on all chunks of `x`; `given` are its arguments before the sizes."""
    chunks, sizes = _divide(x.shape[1], x.shape[2] * x.shape[3], groups)
    key = kernel, x.device, x.dtype, modulation.dtype, sizes, backward
    with torch.cuda.device_of(x):
        if key in _ready:
            _ready[key][x.shape[0], chunks, 1](*given, *sizes, backward)
            return
        found = kernel[x.shape[0], chunks, 1](*given, *sizes, backward)
    if DIRECT:
        _ready[key] = found


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, modulation: Tensor, groups: int, eps: float
    ) -> Tensor:
        x, modulation = x.contiguous(memory_format=torch.channels_last), modulation.contiguous()
        pixels, out = x.shape[2] * x.shape[3], torch.empty_like(x)
        chunks, _ = _divide(x.shape[1], pixels, groups)
        sums = x.new_empty(x.shape[0], chunks, 2, x.shape[1], dtype=torch.float32)
        affine = gamma, beta, modulation
        _start(_sums, x, modulation, groups, (x, x, sums, *affine, sums, pixels, eps), False)
        _start(_apply, x, modulation, groups, (x, x, sums, sums, *affine, out, sums, modulation, pixels, eps), False)
        ctx.save_for_backward(x, gamma, beta, modulation, sums)
        ctx.groups, ctx.eps = groups, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, modulation, sums = ctx.saved_tensors
        dh, pixels = dh.to(x.dtype).contiguous(memory_format=torch.channels_last), x.shape[2] * x.shape[3]
        back, dx, modulated = (torch.empty_like(t) for t in (sums, x, modulation))
        shares, affine = sums.new_empty(x.shape[0], 2, x.shape[1]), (gamma, beta, modulation)
        _start(_sums, x, modulation, ctx.groups, (x, dh, sums, *affine, back, pixels, ctx.eps), True)
        ends = dx, shares, modulated, pixels, ctx.eps
        _start(_apply, x, modulation, ctx.groups, (x, dh, sums, back, *affine, *ends), True)
        return dx, *shares.sum(0), modulated, None, None


def norm_silu(x: Tensor, norm: torch.nn.GroupNorm, modulation: Tensor | None = None) -> Tensor:
    """silu(norm(x) (1 + scale) + shift), (batch, width, y, x), as `x` in type and channels last in memory.

    `modulation` (batch, 2 width) holds scale and shift; the number of groups is a power of 2. Gradients of first order.
    """
    if modulation is None:
        modulation = x.new_zeros(len(x), 2 * x.shape[1])
    out: Tensor = _NormSiLU.apply(x, norm.weight, norm.bias, modulation, norm.num_groups, norm.eps)
    return out
