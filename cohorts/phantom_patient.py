"""One phantom patient: heart, body, tissue, coil and noise put together into two labelled volumes.

Labels are those of ACDC: 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle (papillary muscles belong to
it).
"""

import numpy as np

from seggym.cohorts.cohort import Volume
from seggym.cohorts.phantom_body import Body
from seggym.cohorts.phantom_drawing import Tissue, coloured_noise, magnitude, pixel_positions
from seggym.cohorts.phantom_heart import Heart
from seggym.cohorts.phantom_settings import GROUPS, PhantomSettings
from seggym.errors import SeggymError


def generate_patient(seed: int, settings: PhantomSettings, group: str) -> list[Volume]:
    """Draw one patient at end-diastole (``frame01``) and end-systole; the same arguments give the same arrays.

    ``group`` is a key of :data:`GROUPS`. The volumes hold float32 images of whole numbers 0..1000 and uint8 labels,
    both (Z, Y, X), first slice at the base, and are named after the patient ``phantom``.
    """
    if group not in GROUPS:
        raise SeggymError(f"phantom group {group!r} is unknown, expected one of {', '.join(GROUPS)}")
    # Geometry, textures and noise have streams of their own, so that a change in one leaves the others as they were.
    geometry, textures, noises = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    sides = [int(geometry.integers(low, high + 1)) for low, high in (settings.short_side, settings.long_side)]
    height, width = sides[::-1] if geometry.random() < 0.6 else sides
    pixel, thickness = round(geometry.uniform(*settings.pixel), 4), round(geometry.uniform(*settings.thickness), 1)
    heart = Heart(geometry, settings, GROUPS[group], thickness)
    count = heart.slices_needed(thickness, geometry)
    body = Body(geometry, settings, (height * pixel, width * pixel))
    edge = pixel * geometry.uniform(*settings.blur)
    contrast = {name: geometry.uniform(*getattr(settings, name)) for name in ("myocardium", "fat", "liver", "lung")}
    right_blood = geometry.uniform(0.8, 1.0)
    texture, bias = geometry.uniform(*settings.texture), geometry.uniform(*settings.bias)
    noise = geometry.uniform(*settings.noise)
    coil = np.exp(1j * geometry.uniform(-2.2, -1.0)) * 0.5 * height * pixel

    shape = (count, height, width)
    coarse = coloured_noise(textures, shape, 2.5, longest=60, shortest=8)
    fine = coloured_noise(textures, shape, 0.8, longest=12, shortest=2.6)
    grain = coloured_noise(textures, shape, 1.0, longest=50)
    positions = pixel_positions(height, width, pixel)
    fall = np.abs(positions - np.complex64(coil)) / (0.5 * height * pixel)
    sensitivity = np.exp(-bias * (fall - 1) + 0.08 * coarse.mean(axis=0)).astype(np.float32)

    signals = np.zeros((2, *shape), np.float32)
    labels = np.zeros((2, *shape), np.uint8)
    for z in range(count):
        rough = 1 + np.float32(texture) * grain[z]
        vessels = np.clip(fine[z] + 0.5 * grain[z] - 1.7, 0, 1.5)
        tissue = Tissue(
            positions=positions,
            coarse=coarse[z],
            fine=fine[z],
            blood=1 + np.float32(0.5 * texture) * (grain[z] + coarse[z]),
            right_blood=right_blood * (1 + np.float32(0.7 * texture) * (grain[z] - coarse[z])),
            muscle=contrast["myocardium"] * rough,
            liver=contrast["liver"] * rough,
            fat=contrast["fat"] * (1 + np.float32(1.3 * texture) * (grain[z] + 0.5 * coarse[z])),
            lung=contrast["lung"] * (1 + 0.3 * grain[z]) + 0.3 * vessels,
        )
        body.paint(signals[0, z], z / (count - 1), tissue, edge)
        signals[1, z] = signals[0, z]
        depth = z * thickness
        for number, phase in enumerate(heart.phases):
            part = heart.shape(positions, depth, phase)
            if part is not None:
                heart.paint(signals[number, z], part, depth, phase, tissue, edge)
                label = labels[number, z]
                label[part.right < 0] = 1
                label[part.epicardium < 0] = 2
                label[part.cavity < 0] = 3
            elif depth < phase.base:
                heart.paint_above(signals[number, z], depth, tissue, edge)

    systole = f"frame{int(geometry.integers(9, 15)):02d}"
    return [
        Volume("phantom", frame, magnitude(signal, sensitivity, noise, noises, 99.5), label, (thickness, pixel, pixel))
        for frame, signal, label in zip(("frame01", systole), signals, labels, strict=True)
    ]
