"""The small network as an :class:`~seggym.reward_models.instances.segmenter.InstanceSegmenter`."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from seggym.reward_models.instances.geometry import decode_boxes, mask_boxes, paste_masks, suppress
from seggym.reward_models.instances.losses import Batch, total_loss
from seggym.reward_models.instances.network_segmenter import NetworkSegmenter
from seggym.reward_models.instances.segmenter import Detections, InstanceTarget, McDropout, Thresholds
from seggym.reward_models.instances.small import Features, SmallNetwork, SmallOptions
from seggym.reward_models.seeding import seeded

# Images that pass through the network at a time (with complete passes, each pass of an image counts).
_BATCH = 16


class _Fitted(NamedTuple):
    """Images on the square of the network, (n, 3, S, S), and how much each was scaled by to fit."""

    images: Tensor
    scales: list[float]


class _Found(NamedTuple):
    """Detections of B images in up to n rows each, best first within a pass; ``there`` bool (B, n) says which."""

    boxes: Tensor
    probabilities: Tensor
    passes: Tensor
    there: Tensor


class SmallSegmenter(NetworkSegmenter):
    """A :class:`SmallNetwork` for ``classes`` classes on ``device``.

    Images are fitted into the upper left corner of the network's square; detections are those of the image as given.
    """

    def __init__(
        self,
        classes: int,
        options: SmallOptions | None = None,
        thresholds: Thresholds | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.options = options or SmallOptions()
        super().__init__(classes, thresholds, device, seed)

    def _build(self) -> SmallNetwork:
        return SmallNetwork(self.classes, self.options)

    def _losses(self, images: Sequence[Tensor], targets: Sequence[InstanceTarget]) -> Callable[[list[int]], Tensor]:
        fitted = self._fit_in(images)
        masks = [self._fit_masks(target.masks, scale) for target, scale in zip(targets, fitted.scales, strict=True)]
        labels = [target.labels.to(self.device) for target in targets]

        def loss(rows: list[int]) -> Tensor:
            batch = _mirrored(_gather(fitted.images, masks, labels, rows))
            return total_loss(self.network, batch)

        return loss

    def detect(
        self, images: Sequence[Tensor], dropout: McDropout | None = None, generator: torch.Generator | None = None
    ) -> list[Detections]:
        """What is found in each image; see the interface."""
        passes = dropout.passes if dropout is not None else 1
        complete = dropout is not None and dropout.method == "complete"
        found: list[Detections] = []
        seed = 0 if dropout is None else int(torch.randint(2**62, (1,), generator=generator))
        with seeded(seed, self.device), torch.no_grad(), self._dropout(dropout):
            for part in _parts(images, max(1, _BATCH // passes) if complete else _BATCH):
                fitted = self._fit_in(part)
                repeated = fitted.images.repeat_interleave(passes, 0) if complete else fitted.images
                features = self.network.backbone(repeated)
                rows = self._find(features, 1 if complete else passes)
                logits = self._outline(features, rows)
                for number, (image, scale) in enumerate(zip(part, fitted.scales, strict=True)):
                    own = range(number * passes, (number + 1) * passes) if complete else range(number, number + 1)
                    found.append(self._collect(rows, logits, own, scale, image.shape[-2:]))
        return found

    def features(self, images: Sequence[Tensor]) -> Tensor:
        """The coarse features averaged over the image, (n, F)."""
        found = []
        with torch.no_grad():
            for part in _parts(images, _BATCH):
                coarse = self.network.backbone(self._fit_in(part).images).coarse
                found.append(coarse.mean((2, 3)))
        return torch.cat(found)

    def _fit_in(self, images: Sequence[Tensor]) -> _Fitted:
        size = self.options.size
        square = torch.zeros(len(images), 3, size, size, device=self.device)
        scales = []
        for place, image in zip(square, images, strict=True):
            scale = min(1.0, size / max(image.shape[-2:]))
            image = image.to(self.device)
            if scale < 1:
                height, width = (max(1, round(side * scale)) for side in image.shape[-2:])
                image = functional.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
            place[:, : image.shape[1], : image.shape[2]] = image
            scales.append(scale)
        return _Fitted(square, scales)

    def _fit_masks(self, masks: Tensor, scale: float) -> Tensor:
        """``masks`` bool (k, H, W) on the square, bool (k, S, S)."""
        size = self.options.size
        square = torch.zeros(len(masks), size, size, dtype=torch.bool, device=self.device)
        if scale < 1 and len(masks):
            height, width = (max(1, round(side * scale)) for side in masks.shape[-2:])
            masks = functional.interpolate(masks[:, None].float(), (height, width), mode="area")[:, 0] >= 0.5
        if len(masks):
            square[:, : masks.shape[1], : masks.shape[2]] = masks.to(self.device)
        return square

    def _dropout(self, dropout: McDropout | None) -> "_Dropping":
        modules = [
            module for module in self.network.modules() if isinstance(module, torch.nn.modules.dropout._DropoutNd)
        ]
        if dropout is None:
            return _Dropping([])
        own = self.network.backbone.dropout
        return _Dropping([module for module in modules if dropout.method == "complete" or module is not own])

    def _find(self, features: Features, passes: int) -> _Found:
        """Detections of ``passes`` passes of the heads over the same proposals."""
        network, limits = self.network, self.thresholds
        proposals, there = network.propose(*network.reach(features))
        pooled = network.pool_boxes(features, proposals)
        count, rows = there.shape
        logits, offsets = network.judge(pooled[:, None].expand(-1, passes, -1, -1))
        probabilities = logits.softmax(-1)
        boxes = decode_boxes(offsets, proposals[:, None]).clamp(0, self.options.size)
        score = probabilities[..., 1:].amax(-1)
        thick = ((boxes[..., 2:] - boxes[..., :2]) > 0.5).all(-1)
        score = torch.where(there[:, None] & (score >= limits.confidence) & thick, score, -torch.inf)
        stay = suppress(boxes.flatten(0, 1), score.flatten(0, 1), limits.nms).view(count, passes, rows)
        # Passes one after the other, the best detection of each first; those that do not stay come last.
        number = torch.arange(passes, device=score.device)[:, None].expand(passes, rows)
        rank = torch.where(stay, number * 2 - score, 2 * passes).flatten(1)
        most = int(stay.flatten(1).sum(1).amax())
        chosen = rank.sort(dim=1, stable=True).indices[:, :most]
        wide = chosen[:, :, None]
        return _Found(
            boxes.flatten(1, 2).gather(1, wide.expand(-1, -1, 4)),
            probabilities.flatten(1, 2).gather(1, wide.expand(-1, -1, self.classes + 1)),
            number.flatten()[chosen],
            stay.flatten(1).gather(1, chosen),
        )

    def _outline(self, features: Features, found: _Found) -> Tensor:
        """Mask logits (detections, 28, 28) of all that is there, image by image."""
        pooled = self.network.pool_masks(features, found.boxes)[found.there]
        return self.network.outline(pooled)

    def _collect(self, found: _Found, logits: Tensor, rows: range, scale: float, shape: torch.Size) -> Detections:
        """The detections of ``rows`` of a batch, passes of one image, at its own size."""
        counts = found.there.sum(1)
        first = int(counts[: rows.start].sum())
        there = found.there[rows.start : rows.stop]
        patches = logits[first : first + int(there.sum())]
        boxes = found.boxes[rows.start : rows.stop][there] / scale
        height, width = shape
        boxes = torch.minimum(boxes, boxes.new_tensor([width, height, width, height]))
        probabilities = found.probabilities[rows.start : rows.stop][there]
        scores, labels = probabilities[:, 1:].max(1)
        passes = found.passes[rows.start : rows.stop][there]
        if len(rows) > 1:
            passes = torch.arange(len(rows), device=passes.device).repeat_interleave(there.sum(1))
        return Detections(boxes, labels + 1, scores, probabilities, paste_masks(patches, boxes, height, width), passes)


class _Dropping:
    """Within it the given dropout modules drop; nothing else of the network changes its mode."""

    def __init__(self, modules: list[torch.nn.Module]) -> None:
        self._modules = modules

    def __enter__(self) -> None:
        for module in self._modules:
            module.train()

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            module.eval()


def _parts(images: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    for start in range(0, len(images), size):
        yield [images[number] for number in range(start, min(start + size, len(images)))]


def _gather(images: Tensor, masks: list[Tensor], labels: list[Tensor], rows: list[int]) -> Batch:
    """The images ``rows`` with their objects, padded to as many as the fullest has."""
    most = max(1, *(len(labels[row]) for row in rows))
    size = images.shape[-1]
    padded = torch.zeros(len(rows), most, size, size, dtype=torch.bool, device=images.device)
    named = torch.zeros(len(rows), most, dtype=torch.int64, device=images.device)
    for place, row in enumerate(rows):
        padded[place, : len(labels[row])] = masks[row]
        named[place, : len(labels[row])] = labels[row]
    # An object too small for a pixel, or cut away, is none.
    named *= padded.flatten(2).any(2)
    return Batch(images[rows], mask_boxes(padded), named, padded)


def _mirrored(batch: Batch) -> Batch:
    """Each image mirrored from left to right, or not, at random; as Detectron2 does."""
    size = batch.images.shape[-1]
    flip = torch.rand(len(batch.images), device=batch.images.device) < 0.5
    images = torch.where(flip[:, None, None, None], batch.images.flip(-1), batch.images)
    masks = torch.where(flip[:, None, None, None], batch.masks.flip(-1), batch.masks)
    left, top, right, bottom = batch.boxes.unbind(-1)
    mirrored = torch.stack([size - right, top, size - left, bottom], -1) * (batch.labels > 0)[:, :, None]
    return Batch(images, torch.where(flip[:, None, None], mirrored, batch.boxes), batch.labels, masks)
