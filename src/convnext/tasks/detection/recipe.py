"""The recipe of detection, and its options and checks for the verbs: no heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Literal

from convnext.recipes.schema import AUTO, A, DenseInputRecipe, Recipe, bounds

PREFIXES = ("mask_rcnn_", "cascade_mask_rcnn_")
"""How the names of the networks begin, before the name of the backbone."""


@dataclass(frozen=True, kw_only=True)
class DetectRecipe(Generic[A]):
    """Settings of detection: heads, crops, and the boxes to train on."""

    channels: int | A = field(default=AUTO, metadata=bounds(1))
    """Channels of the pyramid and of the heads' convolutions; 256 in the paper."""
    fc_dim: int | A = field(default=AUTO, metadata=bounds(1))
    """Width of the fully connected layers of the box heads; 1024 in the paper."""
    anchor_scale: float | A = field(default=AUTO, metadata=bounds(0.1))
    """Side of a square anchor in strides; 8 in the paper. Use less for smaller objects."""
    policy: Literal["multi_scale", "large_scale_jitter"] | A = AUTO
    """Resize to one of several sizes as in the paper, or by a random factor and crop a square."""
    sides: tuple[int, ...] | A = AUTO
    """Short sides that `multi_scale` draws from, in pixels."""
    crop_sides: tuple[int, ...] = (400, 500, 600)
    """Short sides at which `multi_scale` first crops half of the images; [] for no crops."""
    crop_range: tuple[int, int] = (384, 600)
    """Min and max side of those crops."""
    jitter: tuple[float, float] | A = AUTO
    """Range of scale factors of `large_scale_jitter`; at 1 an image just fits into `crop`."""
    crop: int | A = field(default=AUTO, metadata=bounds(1))
    """Side of the square crop of `large_scale_jitter`; 1024 is usual."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue."""
    skip_empty: bool = False
    """Train only on images with objects, as the published networks do."""
    ignore_crowd: bool | A = AUTO
    """Do not train on boxes in crowd regions; the published networks treat them as background."""
    group_by_aspect: bool = True
    """Batch landscape and portrait images separately, to pad less."""
    num_proposals: int | A = field(default=AUTO, metadata=bounds(1))
    """Proposals per image that the heads process; 1000 in the paper."""
    rpn_batch_size: int | A = field(default=AUTO, metadata=bounds(1))
    """Anchors per image that the proposal network is trained on; 256 in the paper."""
    box_batch_size: int | A = field(default=AUTO, metadata=bounds(1))
    """Proposals per image that the heads are trained on; 512 in the paper."""
    max_detections: int | A = field(default=AUTO, metadata=bounds(1))
    """Maximum number of detections per image; 100 in the paper and in COCO's metric."""
    score_threshold: float = field(default=0.05, metadata=bounds(0, 1))
    """Minimum score of a detection in evaluation."""
    nms_threshold: float = field(default=0.5, metadata=bounds(0, 1))
    """IoU threshold of NMS within a class."""
    layout: str = ""
    """Layout of the objects, such as `coco`, `yolo` or `voc`; else recognized."""
    annotations: str = ""
    """Annotation files, separated by commas, where several could be meant."""
    images: str = ""
    """Folder of the images, if it is not below the data; with masks, `images` is a pattern."""
    exif: Literal["", "turned", "unturned"] = ""
    """Whether objects were drawn on images turned by EXIF; else recognized."""
    boxes: Literal["", "xywh", "xyxy", "cxcywh"] = ""
    """Numbers of a box in COCO's json; else recognized."""
    allow_outside: bool = False
    """Read files outside the data folder that annotations or links name."""


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe[A]):
    """All settings of a detection run."""

    noun: ClassVar[str] = "detection"
    task: Literal["detect"] = "detect"
    input: DenseInputRecipe[A] = field(default_factory=DenseInputRecipe)
    detect: DetectRecipe[A] = field(default_factory=DetectRecipe)


NUM_INT8_IMAGES = 50


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of `predict`.

    Args:
        score: Minimum score of an object; 0.5 by default.
        nms: IoU threshold of NMS; by default that of training.
        max_detections: Maximum number of objects per image; by default that of training.
        overlays: Format of the pictures.
        names: Write class names and scores into the pictures.
        ids: COCO JSON file that lists the images; the results use its ids.
    """

    score: float | None = None
    nms: float | None = None
    max_detections: int | None = None
    overlays: Literal["png", "jpg", "none"] = "png"
    names: bool = True
    ids: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How data with objects is read; by default, that of a run as in training.

    Args:
        layout: Layout of objects: bdd100k, box-table, coco, createml, cvat, datumaro, dota,
            imagefolder, instances, kitti, label-studio, labelme, roboflow-text, supervisely, via,
            visdrone, voc, vott, wider-face or yolo. For classification, `class_folders` accepts
            any folder names as classes, and `file_names` takes them from names such as cat_1.jpg.
        annotations: Annotation files, separated by commas, where several could be meant.
        images: Folder of the images, if it is not below the data; for segmentation a pattern of
            the images, such as left/{split}/*/*_left.png.
        exif: Whether objects were drawn on images with their EXIF orientation applied.
        boxes: Numbers of a COCO box: corner and size, two corners, or center and size.
        allow_outside: Read files outside the data folder that annotations or links name.
    """

    layout: str = ""
    annotations: str = ""
    images: str = ""
    exif: Literal["", "turned", "unturned"] = ""
    boxes: Literal["", "xywh", "xyxy", "cxcywh"] = ""
    allow_outside: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ReadingOptions):
    """Options of `evaluate`.

    Args:
        score: Minimum score of an object; by default that of training.
        nms: IoU threshold of NMS; by default that of training.
        max_detections: Maximum number of objects per image; by default that of training.
    """

    score: float | None = None
    nms: float | None = None
    max_detections: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `export`.

    Args:
        masks: No masks, mask probabilities on 28 x 28 cells of each box (the default), or a
            full-size bitmap for each object.
    """

    masks: Literal["none", "probabilities", "full", "shares"] | None = None

    def __post_init__(self) -> None:
        """Take `probabilities` for `shares`, the name in files, which is accepted too."""
        if self.masks == "probabilities":
            object.__setattr__(self, "masks", "shares")


@dataclass(frozen=True, kw_only=True)
class DataOptions(ReadingOptions):
    """Options of `data`.

    Args:
        group: Keep images of one patient or place in one split: a regular expression such as
            `(patient\\d+)` for the paths of images, or a column of a table.
    """

    group: str = ""


def recognizes(path: Path) -> bool:
    """Whether a folder or a JSON file is a detection data set, by its layout."""
    from convnext.data.formats.layouts import is_detection

    return is_detection(path)
