"""The settings of a recipe, section by section, and what they mean.

A field that reads `auto` is chosen by the task when it has seen the data, the weights and the
device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Auto = Literal["auto"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """What differs from the named network; for a peer of timm, what it understands of it.

    For peers `auto` leaves the network as its name says; for rungs of the road too, but for the
    stem's stride, stochastic depth and first weights, which follow the data.
    """

    drop_path_rate: float | Auto = "auto"
    """Stochastic depth of the last block."""
    layer_scale_init: float | Auto = "auto"
    """First value of the layer scale; 0 leaves it out. Not for peers."""
    stem: Literal["auto", "patchify", "conv_pool"] = "auto"
    """ConvNeXt's patches, or ResNet's convolution and pooling. Not for peers."""
    stem_stride: int | Auto = "auto"
    """Pixels per position after the stem: 4, or 2 or 1 for small images. Not for peers."""
    norm: Literal["auto", "layer", "batch"] = "auto"
    """Layer norm, or batch norm as on the road before `bn_to_ln`. Not for peers."""
    head_init_scale: float | Auto = "auto"
    """Factor on the head's first weights. Not for peers."""
    init: Literal["auto", "paper", "fan_in"] = "auto"
    """First weights, from scratch: std 0.02 as in the paper, or by the width. Not for peers."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Any other field of `NetworkConfig` (or argument of the timm network) and its value."""


@dataclass(frozen=True, kw_only=True)
class InputRecipe:
    """How an image becomes the network's input, in training, evaluation, prediction and export."""

    image_size: int | Auto = "auto"
    """Side of the square that the network sees, in pixels; the short side of what segmentation and
    detection see, where 0 leaves images as they are."""
    max_size: int = 0
    """The long side at most, for segmentation and detection; 0 for no limit."""
    crop_pct: float | Auto = "auto"
    """Share of the resized short side that the centre crop keeps; 1 resizes to the square."""
    interpolation: Literal["auto", "bicubic", "bilinear", "nearest"] = "auto"
    in_chans: int | Auto = "auto"
    """1 for greyscale, 3 for RGB."""
    mean: tuple[float, ...] | Auto = "auto"
    """Per channel, of values in [0, 1]."""
    std: tuple[float, ...] | Auto = "auto"


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """What happens to training images only (paper, Table 5)."""

    scale: tuple[float, float] | Auto = "auto"
    """Share of the image's area that a random crop keeps."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratios of the random crop."""
    hflip: float | Auto = "auto"
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    rand_augment: str | Auto = "auto"
    """RandAugment in timm's notation, such as `rand-m9-mstd0.5-inc1`; `none` for none."""
    color_jitter: float | Auto = "auto"
    """Strength of brightness, contrast and saturation; RandAugment replaces it (as in timm)."""
    mixup: float | Auto = "auto"
    cutmix: float | Auto = "auto"
    mix_prob: float = 1.0
    """Probability that a batch is mixed at all."""
    mix_switch_prob: float = 0.5
    """Probability of cutmix rather than mixup, where both are on."""
    erasing: float | Auto = "auto"
    """Probability of random erasing, one rectangle of noise."""
    exact: bool = False
    """Cut and transform as Pillow does, to fractions of pixels and as smoothly; half as long again.
    For classification, whose training images are meant; no other image is ever approximate."""


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """What the optimizer minimises."""

    label_smoothing: float | Auto = "auto"


@dataclass(frozen=True, kw_only=True)
class SegmentRecipe:
    """What only segmentation has: its head, its crops, its loss, and how large images are read."""

    channels: int | Auto = "auto"
    """Width of UPerNet's head; 512 in the paper."""
    auxiliary_weight: float = 0.4
    """Of the loss of the auxiliary head on c4; 0 leaves the head out."""
    dropout: float = 0.1
    """Before the classifiers of both heads."""
    crop: int | Auto = "auto"
    """Side of the square that training cuts out, in pixels of the resized image."""
    jitter: tuple[float, float] | Auto = "auto"
    """Factors on the size of the image before the crop."""
    max_class_share: float = 0.75
    """A crop with more than this of one class is drawn anew, up to ten times."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue."""
    average: Literal["all", "labelled"] = "all"
    """Divide the loss by all pixels, as the published networks, or by those with a label."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Factors on the loss of each class; `balanced` by the inverse root of its share of pixels."""
    dice: float = 0.0
    """Weight of the soft dice loss beside the cross-entropy."""
    ohem: float = 0.0
    """Count only pixels whose true class has less than this probability (0.7 is usual); 0: all."""
    mode: Literal["auto", "whole", "slide"] = "auto"
    """Read an image whole, or by a window that slides over it."""
    window: int | Auto = "auto"
    """Side of that window in pixels of the resized image; the crop by default."""
    stride: int | Auto = "auto"
    """Pixels between two windows; two thirds of the window by default."""
    images: str = ""
    """Pattern of the images, such as `left/{split}/*/*_left.png`; empty to go by the layout."""
    masks: str = ""
    """Pattern of the masks; what the stars stand for pairs them with the images."""
    reduce_zero_label: bool | Auto = "auto"
    """Value 0 of a mask means no class, as in ADE20K; `auto` knows that layout."""


@dataclass(frozen=True, kw_only=True)
class DetectRecipe:
    """What only detection has: its heads, its crops, and which boxes it learns from."""

    channels: int | Auto = "auto"
    """Width of the pyramid and of the heads' convolutions; 256 in the paper."""
    fc_dim: int | Auto = "auto"
    """Width of the fully connected layers of the box heads; 1024 in the paper."""
    anchor_scale: float | Auto = "auto"
    """Side of a square anchor in strides; 8 in the paper. Smaller objects want smaller ones."""
    policy: Literal["auto", "multi_scale", "large_scale_jitter"] = "auto"
    """Resize to one of several sizes, as in the paper, or by any factor and crop to a square."""
    sides: tuple[int, ...] | Auto = "auto"
    """Short sides that `multi_scale` draws from, in pixels."""
    crop_sides: tuple[int, ...] = (400, 500, 600)
    """Short sides of which half of the images of `multi_scale` are first cut; () cuts none."""
    crop_range: tuple[int, int] = (384, 600)
    """Smallest and largest side of those cuts."""
    jitter: tuple[float, float] | Auto = "auto"
    """Factors that `large_scale_jitter` draws from, on an image that just fits into `crop`."""
    crop: int | Auto = "auto"
    """Side of the square that `large_scale_jitter` cuts out; 1024 is usual."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue."""
    skip_empty: bool = False
    """Leave images without objects out of training, as the published networks do."""
    ignore_crowd: bool | Auto = "auto"
    """Do not train on boxes within crowd regions; the published networks take them for nothing."""
    group_by_aspect: bool = True
    """Batches of images that all lie or all stand, so that less is padded."""
    num_proposals: int | Auto = "auto"
    """Proposals of an image that are looked at; 1000 in the paper."""
    rpn_batch_size: int | Auto = "auto"
    """Anchors of an image that the proposals are trained on; 256 in the paper."""
    box_batch_size: int | Auto = "auto"
    """Proposals of an image that the heads are trained on; 512 in the paper."""
    max_detections: int | Auto = "auto"
    """Most objects that are found on an image; 100 in the paper and in COCO's metric."""
    score_threshold: float = 0.05
    """Least score of a detection in evaluation."""
    nms_threshold: float = 0.5
    """Overlap from which the better of two detections of one class suppresses the other."""


@dataclass(frozen=True, kw_only=True)
class OptimRecipe:
    """AdamW, and the batch that one of its steps sees."""

    lr: float | Auto = "auto"
    """Peak learning rate, for the stated `batch_size`; never rescaled behind your back."""
    batch_size: int | Auto = "auto"
    """Images per optimizer step, over all devices."""
    micro_batch_size: int | Auto = "auto"
    """Images per device and backward pass; the steps in between accumulate gradients."""
    weight_decay: float | Auto = "auto"
    """None on biases and on parameters of one dimension."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float | Auto = "auto"
    """Factor on the learning rate per group of blocks from the head down; 1 for none."""
    layer_decay_by: Literal["layer", "stage"] = "layer"
    """Groups of three blocks, as for classification and COCO, or whole stages as for ADE20K."""
    clip_grad: float | Auto = "auto"
    """Largest norm of the gradient; 0 for no clipping."""


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """Linear warm-up, then a descent, per step."""

    epochs: int | Auto = "auto"
    steps: int = 0
    """Length in optimizer steps, as recipes of segmentation give it; 0 for `epochs`."""
    warmup_epochs: float | Auto = "auto"
    warmup_steps: int = 0
    """Warm-up in steps; 0 for `warmup_epochs`."""
    warmup_ratio: float = 0.0
    """Share of the peak at which the warm-up begins."""
    shape: Literal["cosine", "polynomial", "multistep"] = "cosine"
    """How the rate falls after the warm-up."""
    power: float = 1.0
    """Of the polynomial; 1 is a straight line."""
    milestones: tuple[float, ...] = ()
    """Epochs at which a multistep schedule takes a tenth of the rate."""
    min_lr: float = 1e-6
    """Where cosine and polynomial end."""
    progressive: bool | Auto = "auto"
    """Begin with smaller images: half the size, then two thirds, the last fifth in full."""


@dataclass(frozen=True, kw_only=True)
class EmaRecipe:
    """The exponential moving average of the weights."""

    decay: float | Auto = "auto"
    """Per step; 0 for none. The horizon is 1 / (1 - decay) steps."""


@dataclass(frozen=True, kw_only=True)
class LoaderRecipe:
    """How samples reach the network."""

    workers: int | Auto = "auto"
    """Processes that decode and augment; 0 does it in the training process."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """`balanced` draws every class equally often."""
    cache: bool | Auto = "auto"
    """Keep decoded images in memory, where the data set is small."""
    max_bad_share: float = 0.01
    """The run fails when more than this share of the images cannot be read, and more than one."""
    val_share: float = 0.2
    """Share of each class held out for validation, where the data has no split of its own."""
    shard_cache: str = "~/.cache/convnext/shards"
    """Folder for copies of remote shards; one on a local disk, for all runs of a machine."""
    shard_cache_gb: float = 0.0
    """Gigabytes of copies at most, those used least recently make room; 0 for half of what is free
    on that disk."""
    retries: int = 5
    """How often a failed request for remote data is repeated, with growing pauses."""
    timeout: float = 60.0
    """Seconds to wait for a server to connect, and then for each piece of data."""


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """Where and in which precision the run executes, when it is measured, and its seed."""

    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    devices: int | Auto = "auto"
    """Processes on this machine; `auto` is what torchrun or srun started, else one."""
    num_nodes: int = 1
    """Machines; all of them must be started by torchrun or srun."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several devices: a copy of the network on each, or a share of it (`convnext_xlarge`)."""
    channels_last: bool | Auto = "auto"
    """Memory format of images and weights; `auto` measures in long runs, else takes it."""
    compile: bool | Auto = "auto"
    """Train through torch.compile; `auto` measures in long runs, else leaves it."""
    fused: bool = True
    """Train blocks of ConvNeXt as one operation on a CPU (eager mode): the same up to rounding."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    deterministic: bool = False
    """The same bits every time on a GPU too, at some cost in speed; nothing is measured first."""
    eval_every: int | Auto = "auto"
    """Epochs between evaluations; the last step is always evaluated."""
    save_every: int | Auto = "auto"
    """Steps between saved states, beside those of evaluations: what a crash can cost."""
    patience: int = 0
    """Stop after this many evaluations without a better one; 0 never stops early."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """When a loss is no number: stop, or go on from the last good state at half the rate."""
    loggers: tuple[str, ...] = ()
    """`wandb`, `mlflow`, beside TensorBoard, which is always on."""
    reference: str = "none"
    """A curve to compare with: a run folder, its metrics.jsonl, or a CSV of `epoch,<metric>`."""
    reference_tolerance: float = 2.0
    """How far below the reference an evaluation may be before the run warns, in points."""
    seed: int = 0


# The smallest and largest value of settings that must lie between; None for no bound.
RANGES: dict[str, tuple[float | None, float | None]] = {
    "optim.lr": (0, None),
    "optim.batch_size": (1, None),
    "optim.micro_batch_size": (1, None),
    "optim.weight_decay": (0, None),
    "optim.layer_decay": (0, 1),
    "optim.clip_grad": (0, None),
    "schedule.epochs": (1, None),
    "schedule.warmup_epochs": (0, None),
    "schedule.min_lr": (0, None),
    "schedule.steps": (0, None),
    "schedule.warmup_steps": (0, None),
    "schedule.warmup_ratio": (0, 1),
    "schedule.power": (0, None),
    "segment.channels": (1, None),
    "segment.auxiliary_weight": (0, None),
    "segment.dropout": (0, 1),
    "segment.crop": (1, None),
    "segment.max_class_share": (0.01, 1),
    "segment.dice": (0, None),
    "segment.ohem": (0, 1),
    "segment.window": (1, None),
    "segment.stride": (1, None),
    "detect.channels": (1, None),
    "detect.fc_dim": (1, None),
    "detect.anchor_scale": (0.1, None),
    "detect.crop": (1, None),
    "detect.num_proposals": (1, None),
    "detect.rpn_batch_size": (1, None),
    "detect.box_batch_size": (1, None),
    "detect.max_detections": (1, None),
    "detect.score_threshold": (0, 1),
    "detect.nms_threshold": (0, 1),
    "ema.decay": (0, 0.9999999),
    "input.image_size": (0, None),
    "input.max_size": (0, None),
    "loader.workers": (0, None),
    "loader.max_bad_share": (0, 1),
    "loader.shard_cache_gb": (0, None),
    "loader.retries": (0, None),
    "loader.timeout": (0.001, None),
    "loss.label_smoothing": (0, 1),
    "run.devices": (1, None),
    "run.num_nodes": (1, None),
    "run.eval_every": (0, None),
    "run.save_every": (1, None),
    "run.patience": (0, None),
    "run.reference_tolerance": (0, None),
    "run.seed": (0, 2**32 - 1),
}
