"""The recipe of classification, and its options and checks for the verbs: no heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Literal

from convnext.recipes.schema import (
    AUTO,
    A,
    AugmentRecipe,
    Auto,
    InputRecipe,
    LoaderRecipe,
    NetworkRecipe,
    Recipe,
    RunRecipe,
    ScheduleRecipe,
    bounds,
)

if TYPE_CHECKING:
    from convnext.deploy.runtimes import Exported
    from convnext.tasks.classification.exported import ExportedClassifier


@dataclass(frozen=True, kw_only=True)
class ClassificationNetwork(NetworkRecipe):
    """Changes to the named network, including its head."""

    head_init_scale: float | Auto = AUTO
    """Factor on the head's initial weights. Not for timm models."""


@dataclass(frozen=True, kw_only=True)
class ClassificationInput(InputRecipe[A]):
    """Preprocessing of images for a classifier."""

    crop_pct: float | A = AUTO
    """Fraction of the resized short side kept by the center crop; 1 resizes to the square."""


@dataclass(frozen=True, kw_only=True)
class ClassificationAugment(AugmentRecipe[A]):
    """Augmentation of training images (paper, Table 5)."""

    scale: tuple[float, float] | A = AUTO
    """Range of the random crop's area, as a fraction of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the random crop's aspect ratio."""
    rand_augment: str | A = AUTO
    """RandAugment in timm's notation, such as `rand-m9-mstd0.5-inc1`; `none` for none."""
    color_jitter: float | A = AUTO
    """Jitter of brightness, contrast and saturation; RandAugment replaces it, as in timm."""
    mixup: float | A = AUTO
    """Blend pairs of images, with this alpha; 0 for none."""
    cutmix: float | A = AUTO
    """Replace a rectangle of an image by that of another one, with this alpha for its size; 0 for
    none."""
    mix_prob: float = 1.0
    """Probability of mixing a batch at all."""
    mix_switch_prob: float = 0.5
    """Probability of cutmix rather than mixup if both are on."""
    erasing: float | A = AUTO
    """Probability of random erasing: one rectangle of noise."""
    exact: bool = False
    """Crop and transform training images as precisely as Pillow does; takes about 1.5 times as
    long. Other images are always exact."""


@dataclass(frozen=True, kw_only=True)
class LossRecipe(Generic[A]):
    """Loss, and the thresholds of images with several labels."""

    name: Literal["cross_entropy", "bce", "focal", "asymmetric"] | A = AUTO
    """`cross_entropy` for one label or probabilities; for several labels `bce`, the binary
    cross-entropy of each class, `focal` or `asymmetric`."""
    label_smoothing: float | A = field(default=AUTO, metadata=bounds(0, 1))
    """Label smoothing of the cross-entropy; 0 turns it off."""
    balance: Literal["none", "sampler", "loss", "logit"] | A = AUTO
    """Sampling or loss that helps rare classes."""
    pos_weight: float | Auto = field(default=AUTO, metadata=bounds(1))
    """For `bce`, the largest weight of images with a label: the weight of a class is the number of
    images without it for each image with it; 1 for no weights."""
    gamma: float | Auto = field(default=AUTO, metadata=bounds(0))
    """For `focal` and `asymmetric`, how little easy images count; for the latter, those without the
    label (with it, 1)."""
    alpha: float | Auto = field(default=AUTO, metadata=bounds(0, 1))
    """For `focal`, the weight of images with a label; those without weigh 1 - alpha."""
    margin: float | Auto = field(default=AUTO, metadata=bounds(0, 1))
    """For `asymmetric`, the probability below which an image without the label does not count."""
    thresholds: str = "f1"
    """Probability from which an image has a label: `f1` for the maximum F1 of each class in
    validation, `precision:0.9` for a wanted precision, or a number for all classes."""


SEVERAL_LABELS = ("bce", "focal", "asymmetric")
"""The losses of images with several labels."""


@dataclass(frozen=True, kw_only=True)
class ClassificationSchedule(ScheduleRecipe[A]):
    """Learning rate schedule, and progressive resizing."""

    progressive: bool | A = AUTO
    """Train on images of half, then two thirds of the size, and of full size in the last fifth.
    No phase leaves the last stage of the network less than 2 x 2 positions."""


@dataclass(frozen=True, kw_only=True)
class ClassificationRun(RunRecipe[A]):
    """Device, precision, seed, evaluation and logging."""

    primary: Literal["top1", "balanced_accuracy", "macro_f1", "map"] | A = AUTO
    """Metric that selects the best weights."""


@dataclass(frozen=True, kw_only=True)
class ClassificationLoader(LoaderRecipe[A]):
    """Data loading, from disk or from remote shards."""

    sampling: Literal["uniform", "balanced"] = "uniform"
    """`balanced` draws every class equally often, as `loss.balance sampler` does."""
    layout: Literal["", "class_folders", "file_names"] = ""
    """`class_folders` accepts any folder names as classes, such as `images` or `test`;
    `file_names` takes the classes from names such as cat_1.jpg."""
    columns: str = ""
    """Columns of a table, such as `image=file,label=species,fold=k`; by default recognized. Also
    `separator`, the sign between several labels of an image, such as `comma`, or `none`."""
    fold: int | str = ""
    """The fold for validation of a table with a column of folds; by default the first one."""
    shard_cache: str = "~/.cache/convnext/shards"
    """Folder for cached remote shards; use one on a local disk for all runs on a machine."""
    shard_cache_gb: float = field(default=0.0, metadata=bounds(0))
    """Maximum size of the shard cache in gigabytes; least recently used shards are removed. 0 for
    half of the free disk space."""
    retries: int = field(default=5, metadata=bounds(0))
    """Retries of a failed request for remote data, with growing pauses."""
    timeout: float = field(default=60.0, metadata=bounds(0.001))
    """Timeout in seconds for connecting to a server, and for each read."""


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(Recipe[A]):
    """The recipe of a classification run."""

    noun: ClassVar[str] = "classification"
    task: Literal["classify"] = "classify"
    network: ClassificationNetwork = field(default_factory=ClassificationNetwork)
    input: ClassificationInput[A] = field(default_factory=ClassificationInput)
    augment: ClassificationAugment[A] = field(default_factory=ClassificationAugment)
    loss: LossRecipe[A] = field(default_factory=LossRecipe)
    schedule: ClassificationSchedule[A] = field(default_factory=ClassificationSchedule)
    loader: ClassificationLoader[A] = field(default_factory=ClassificationLoader)
    run: ClassificationRun[A] = field(default_factory=ClassificationRun)


NUM_INT8_IMAGES = 500


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of `predict`.

    Args:
        topk: Classes per image, in the table and in the files.
        batch_size: Images per batch. It may change the last bits of the probabilities.
        wide: Write one row per image into predictions.csv, with a column for each class and, if
            the folder names it, the true class.
        multi_scale: Average the predictions at several scales.
        flip: Average with the prediction for the mirrored image.
    """

    topk: int = 5
    batch_size: int = 64
    wide: bool = False
    multi_scale: bool = False
    flip: bool = False


LAYOUT_NAMES = ("class_folders", "file_names")
"""The values of `layout` that are for this task alone."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How labeled data is read; by default, that of a run as in training.

    Args:
        layout: Layout of objects: bdd100k, box-table, coco, createml, cvat, datumaro, dota,
            imagefolder, instances, kitti, label-studio, labelme, roboflow-text, supervisely, via,
            visdrone, voc, vott, wider-face or yolo. For classification, `class_folders` accepts
            any folder names as classes, and `file_names` takes them from names such as cat_1.jpg.
        columns: Columns of a table, such as `image=file,label=kind,fold=k`; also `split`, and the
            `separator` of several labels. By default recognized.
        fold: The fold for validation of a table with a column of folds, or of folders such as
            fold_0; by default the first one.
    """

    layout: str = ""
    columns: str = ""
    fold: int | str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ReadingOptions):
    """Options of `evaluate`.

    Args:
        batch_size: Images per batch; may change the last bits of the scores.
        only_best: Evaluate only the best weights of a run, not those of the last step too.
        multi_scale: Average the predictions at several scales.
        flip: Average with the prediction for the mirrored image.
    """

    batch_size: int = 64
    only_best: bool = False
    multi_scale: bool = False
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class DataOptions(ReadingOptions):
    """Options of `data`.

    Args:
        group: Keep images of one patient or place in one split: a regular expression such as
            `(patient\\d+)` for the paths of images, or a column of a table.
    """

    group: str = ""


def recognizes(path: Path) -> bool:
    """Whether a path is certainly classification data; it is also the default for unknown data."""
    return False


def fits_too(path: Path) -> bool:
    """Whether data of another task may as well be for classification: it has train/CLASS/*."""
    from convnext.data.formats.class_folders import has_class_folders

    return path.is_dir() and has_class_folders(path)


def file_predictor(exported: Exported) -> ExportedClassifier:
    """Return a predictor that uses only an exported file, without torch."""
    from convnext.tasks.classification.exported import ExportedClassifier

    return ExportedClassifier(exported)
