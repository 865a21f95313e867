"""Mask R-CNN of torchvision (``pip install seggym[torchvision]``), with maskAL's dropout in its heads.

torchvision is imported when such a segmenter is made. Its operators are compiled for one build of torch: next to
another one (a CPU build of torch, say, and the CUDA build of torchvision that PyPI has) they do not load, which is said
in one sentence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seggym.errors import SeggymError
from seggym.reward_models.instances.geometry import mask_boxes, paste_masks, suppress
from seggym.reward_models.instances.network_segmenter import NetworkSegmenter
from seggym.reward_models.instances.segmenter import Detections, InstanceTarget, McDropout, Thresholds
from seggym.reward_models.seeding import seeded
from seggym.reward_models.unext import group_norm

# Detections of one pass in one image, at most.
_MOST = 100


@dataclass(frozen=True)
class TorchvisionOptions:
    """``backbone``: a residual network of torchvision with a feature pyramid, "resnet50" or "resnet18". ``size``: the
    side that the shorter edge of an image is scaled to. ``dropout`` of the heads. ``pretrained``: begin with
    torchvision's weights for COCO (resnet50 only; downloaded by torchvision)."""

    backbone: str = "resnet50"
    size: int = 800
    dropout: float = 0.25
    pretrained: bool = False

    def __post_init__(self) -> None:
        if self.backbone not in ("resnet50", "resnet18"):
            raise SeggymError(f"backbone={self.backbone!r} is unknown, expected resnet50 or resnet18")
        if self.pretrained and self.backbone != "resnet50":
            raise SeggymError(
                f"pretrained weights are those of resnet50, found backbone={self.backbone}; leave one out"
            )
        if self.size < 32 or not 0 <= self.dropout < 1:
            raise SeggymError(f"size={self.size} and dropout={self.dropout}, expected at least 32 and 0 <= p < 1")


def require_torchvision() -> None:
    """Raise :class:`SeggymError` where torchvision or its operators do not load."""
    advice = "use backend=small, which needs none, or install builds of torch and torchvision that belong together"
    try:
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except ImportError as error:
        raise SeggymError(
            f"backend=torchvision needs torchvision, which cannot be imported ({error}): pip install "
            f"seggym[torchvision], or {advice}"
        ) from None
    except (RuntimeError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SeggymError(
            f"backend=torchvision needs torchvision's operators, which do not load next to torch {torch.__version__} "
            f"({reason}): {advice}"
        ) from None


class TorchvisionSegmenter(NetworkSegmenter):
    """Mask R-CNN for ``classes`` classes on ``device``; :class:`~.segmenter.InstanceSegmenter` is the specification.

    Its backbone has no dropout, so complete passes are distributed as those of the heads, and only slower.
    """

    def __init__(
        self,
        classes: int,
        options: TorchvisionOptions | None = None,
        thresholds: Thresholds | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        require_torchvision()
        self.options = options or TorchvisionOptions()
        super().__init__(classes, thresholds, device, seed)

    def _build(self) -> Any:
        """Mask R-CNN with fresh weights, or with pretrained ones and fresh last layers."""
        from torchvision.models import detection
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
        from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

        options, outputs = self.options, self.classes + 1
        sizes = {"min_size": options.size, "max_size": 2 * options.size}
        if options.pretrained:
            network = detection.maskrcnn_resnet50_fpn(weights="DEFAULT", trainable_backbone_layers=5, **sizes)
        else:
            # Frozen batch norm, the default, is for pretrained weights.
            backbone = resnet_fpn_backbone(
                backbone_name=options.backbone, weights=None, norm_layer=group_norm, trainable_layers=5
            )
            network = detection.MaskRCNN(backbone, outputs, **sizes)
        heads = network.roi_heads
        heads.box_predictor = FastRCNNPredictor(heads.box_head.fc7.out_features, outputs)
        heads.mask_predictor = MaskRCNNPredictor(heads.mask_predictor.conv5_mask.in_channels, 256, outputs)

        def drop(module: nn.Module, *names: str) -> None:
            for name in names:
                setattr(module, name, nn.Sequential(nn.Dropout(options.dropout), getattr(module, name)))

        drop(heads.box_head, "fc6", "fc7")
        drop(heads.box_predictor, "cls_score", "bbox_pred")
        drop(heads.mask_predictor, "conv5_mask", "mask_fcn_logits")
        return network

    def _losses(self, images: Sequence[Tensor], targets: Sequence[InstanceTarget]) -> Callable[[list[int]], Tensor]:
        def loss(rows: list[int]) -> Tensor:
            flips = (torch.rand(len(rows)) < 0.5).tolist()
            pairs = [self._pair(images[row], targets[row], flip) for row, flip in zip(rows, flips, strict=True)]
            parts = self.network([image for image, _ in pairs], [target for _, target in pairs])
            return torch.stack(list(parts.values())).sum()

        return loss

    def _pair(self, image: Tensor, target: InstanceTarget, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and target as torchvision wants them; mirrored from left to right with ``flip``."""
        image, masks = image.to(self.device), target.masks.to(self.device)
        if flip:
            image, masks = image.flip(-1), masks.flip(-1)
        there = masks.flatten(1).any(1)
        masks = masks[there]
        labels = target.labels.to(self.device)[there]
        return image, {"boxes": mask_boxes(masks), "labels": labels, "masks": masks.to(torch.uint8)}

    def detect(
        self, images: Sequence[Tensor], dropout: McDropout | None = None, generator: torch.Generator | None = None
    ) -> list[Detections]:
        """What is found in each image, one image at a time; see the interface."""
        seed = 0 if dropout is None else int(torch.randint(2**62, (1,), generator=generator))
        modules = [module for module in self.network.modules() if isinstance(module, nn.Dropout)]
        with seeded(seed, self.device), torch.no_grad():
            for module in modules if dropout is not None else ():
                module.train()
            try:
                return [self._detect(image.to(self.device), dropout) for image in images]
            finally:
                for module in modules:
                    module.eval()

    def _detect(self, image: Tensor, dropout: McDropout | None) -> Detections:
        heads = self.network.roi_heads
        passes = dropout.passes if dropout is not None else 1
        found: list[Detections] = []
        for number in range(passes):
            if number == 0 or (dropout is not None and dropout.method == "complete"):
                scaled = self.network.transform([image])[0]
                features = self.network.backbone(scaled.tensors)
                proposals = self.network.rpn(scaled, features)[0]
                pooled = heads.box_roi_pool(features, proposals, scaled.image_sizes)
            boxes, probabilities = self._judge(pooled, proposals, scaled.image_sizes[0])
            scores, labels = probabilities[:, 1:].max(1)
            seen = heads.mask_roi_pool(features, [boxes], scaled.image_sizes)
            logits = heads.mask_predictor(heads.mask_head(seen))
            patches = logits[torch.arange(len(labels), device=labels.device), labels + 1]
            (height, width), (tall, wide) = image.shape[-2:], scaled.image_sizes[0]
            boxes = boxes * boxes.new_tensor([width / wide, height / tall] * 2)
            masks = paste_masks(patches, boxes, height, width)
            found.append(Detections(boxes, labels + 1, scores, probabilities, masks, torch.full_like(labels, number)))
        return Detections(**{name: torch.cat([getattr(part, name) for part in found]) for name in vars(found[0])})

    def _judge(self, pooled: Tensor, proposals: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes (k, 4) and class probabilities (k, C + 1) of one pass of the box head, best first."""
        from torchvision.ops import clip_boxes_to_image

        heads, limits = self.network.roi_heads, self.thresholds
        logits, offsets = heads.box_predictor(heads.box_head(pooled))
        probabilities = logits.softmax(1)
        score, label = probabilities[:, 1:].max(1)
        boxes = heads.box_coder.decode(offsets, proposals)
        boxes = boxes.view(len(label), -1, 4)[torch.arange(len(label), device=label.device), label + 1]
        boxes = clip_boxes_to_image(boxes, size)
        thick = ((boxes[:, 2:] - boxes[:, :2]) > 0.5).all(1)
        score = torch.where((score >= limits.confidence) & thick, score, -torch.inf)
        stay = suppress(boxes[None], score[None], limits.nms)[0]
        order = score.masked_fill(~stay, -torch.inf).sort(dim=0, descending=True, stable=True).indices
        order = order[: min(int(stay.sum()), _MOST)]
        return boxes[order], probabilities[order]

    def features(self, images: Sequence[Tensor]) -> Tensor:
        """The finest level of the feature pyramid averaged over the image, (n, 256)."""
        found = []
        with torch.no_grad():
            for image in images:
                scaled = self.network.transform([image.to(self.device)])[0]
                found.append(self.network.backbone(scaled.tensors)["0"].mean((2, 3)))
        return torch.cat(found)
