"""Random numbers as a pure function of a 64-bit key, computed for a whole batch at once.

An episode owns one key. Everything random in it is drawn from here, so it can be replayed alone or in any batch and
gives the same bits. The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) used as a counter-based hash.
"""

import hashlib

import torch

from seggym.kspace.transforms import polar

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift: torch's ``>>`` on int64 would copy the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Scramble ``x`` in place: a fresh tensor per operation would cost three times as much."""
    x.bitwise_xor_(_shift_right(x, 30)).mul_(_MIX_1)
    x.bitwise_xor_(_shift_right(x, 27)).mul_(_MIX_2)
    return x.bitwise_xor_(_shift_right(x, 31))


# Which draws of a stream are wanted: the first so many, or those with these numbers, int64 (n,) or (B, n).
Draws = int | torch.Tensor


def random_bits(keys: torch.Tensor, stream: int, draws: Draws) -> torch.Tensor:
    """64 random bits per draw: int64 (B, n) for ``keys`` int64 (B,). Streams of one key are independent."""
    seeds = _mix(keys + _mix(torch.full_like(keys, stream + 1) * _GOLDEN))
    numbers = torch.arange(draws, device=keys.device) if isinstance(draws, int) else draws
    return _mix(seeds[:, None] + (numbers + 1) * _GOLDEN)


def uniform(keys: torch.Tensor, stream: int, draws: Draws, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Uniform on (low, high): float32 (B, n)."""
    unit = _shift_right(random_bits(keys, stream, draws), 40).to(torch.float32).add_(0.5).mul_(2.0**-24)
    return low + (high - low) * unit


def complex_normal(keys: torch.Tensor, stream: int, draws: Draws) -> torch.Tensor:
    """Complex normal with unit variance in the real and in the imaginary part: complex64 (B, n)."""
    bits = random_bits(keys, stream, draws)
    radius_draw = _shift_right(bits, 40).to(torch.float32).add_(0.5).mul_(2.0**-24)
    angle = bits.bitwise_and_(0xFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-24 * 2 * torch.pi)
    return polar(radius_draw.log_().mul_(-2).sqrt_(), angle)


def key_of(text: str) -> int:
    """A signed 64-bit key that depends on ``text`` alone, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
