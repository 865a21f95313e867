"""Centred, orthonormal Fourier transforms: the sample at index N // 2 is DC in k-space and the centre in the image."""

import torch


def fftc(x: torch.Tensor, dim: tuple[int, ...]) -> torch.Tensor:
    """Image to k-space along the axes ``dim``."""
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x, dim=dim), dim=dim, norm="ortho"), dim=dim)


def ifftc(x: torch.Tensor, dim: tuple[int, ...]) -> torch.Tensor:
    """k-space to image along the axes ``dim``; the inverse of :func:`fftc`."""
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(x, dim=dim), dim=dim, norm="ortho"), dim=dim)


def polar(radius: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """``torch.polar`` of real tensors of one shape; on a processor several times as fast, its functions vectorised."""
    result = torch.empty(*angle.shape, 2, dtype=angle.dtype, device=angle.device)
    torch.mul(radius, angle.cos(), out=result[..., 0])
    torch.mul(radius, angle.sin(), out=result[..., 1])
    return torch.view_as_complex(result)


def centre_crop(x: torch.Tensor, size: int, dim: tuple[int, ...]) -> torch.Tensor:
    """The block of ``size`` samples around index N // 2 of each axis in ``dim``; zero-padded where N < size."""
    for axis in dim:
        length = x.shape[axis]
        start = length // 2 - size // 2
        if length >= size:
            x = x.narrow(axis, start, size)
        else:
            shape = list(x.shape)
            shape[axis] = size
            padded = x.new_zeros(shape)
            padded.narrow(axis, -start, length).copy_(x)
            x = padded
    return x
