"""How a network is trained: one typed tree of frozen dataclasses, YAML in and out.

A field that reads `auto` is chosen by the task when it has seen the data, the weights and the
device; what it chose and why is printed, and the run keeps the resolved recipe. A recipe file
holds only what differs from the defaults here, or from the file that its key `base` names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from convnext.names import nearest

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a run."""

    task: Literal["classify", "detect", "segment"] = "classify"
    model: str = "auto"
    """A name of `convnext models`, or `timm/<name>`."""
    weights: str = "none"
    """Where training starts: `none`, a tag of `convnext models`, a path, or a hub id."""
    data: str = "digits"
    """A folder, an address of shards, or `digits` for the data set that comes along."""
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    input: InputRecipe = field(default_factory=InputRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    segment: SegmentRecipe = field(default_factory=SegmentRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    ema: EmaRecipe = field(default_factory=EmaRecipe)
    loader: LoaderRecipe = field(default_factory=LoaderRecipe)
    run: RunRecipe = field(default_factory=RunRecipe)


# The section that only one task has.
SECTION_OF_TASK = {"segment": "segment"}

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


def check_ranges(recipe: Recipe) -> None:
    """Check the settings that are numbers.

    Raises:
        ValueError: Naming the setting, its value and its bounds.
    """
    for name, value in flatten(recipe):
        low, high = RANGES.get(name, (None, None))
        if isinstance(value, str) or (low is None and high is None):
            continue
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise ValueError(f"{name} is {value}, but must be {bounds}")


def flatten(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("section.field", value) for every leaf, in the order of the definition."""
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if is_dataclass(value):
            yield from flatten(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value


def change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return `recipe` with some leaves replaced, named as `flatten` names them.

    Raises:
        ValueError: If a name is unknown; the nearest one is suggested.
    """
    known = dict(flatten(recipe))
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"a recipe has no setting {name!r}{nearest(name, known)}")
        section, _, leaf = name.rpartition(".")
        part = replace(getattr(recipe, section), **{leaf: value}) if section else value
        recipe = replace(recipe, **{section or leaf: part})
    return recipe


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("convnext") / "recipes"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe: a YAML file of differences, or the name of one that comes along.

    Raises:
        ValueError: If there is none, it is not valid YAML, a key is unknown (the nearest one is
            suggested), or a value has the wrong type.
    """
    return recipe_from_dict(_read_tree(source), where=str(source))


def recipe_from_dict(tree: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a recipe from nested mappings, checking every key and type."""
    from jsonargparse import ArgumentError

    _check_keys(tree, Recipe(), where)
    try:
        parser = recipe_parser()
        return as_recipe(parser.parse_object(dict(tree)))
    except ArgumentError as error:
        raise ValueError(f"{where}: {explain(error)}") from error


def recipe_parser(prog: str = "convnext train") -> Any:
    """Return a jsonargparse parser with a `--section.field` option for every leaf."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, prog=prog)
    parser.add_class_arguments(Recipe)
    return parser


def as_recipe(namespace: Any) -> Recipe:
    """Turn what the parser returned into a `Recipe`."""
    parser = recipe_parser()
    return Recipe(**parser.instantiate(namespace).as_dict())


def number(value: float | str) -> float:
    """Return a setting that is no longer `auto`."""
    assert not isinstance(value, str), "the recipe must be resolved first"
    return value


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return nested plain values, as YAML and JSON know them, without sections of other tasks."""
    tree = asdict(recipe)
    for section in SECTION_OF_TASK.values():
        if section != SECTION_OF_TASK.get(recipe.task):
            del tree[section]
    return _plain(tree)  # type: ignore[no-any-return]


def to_yaml(recipe: Recipe) -> str:
    """Return every setting as YAML, in the order of the definition."""
    import yaml

    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def explain(error: Exception) -> str:
    """Return the parser's message about a value as one line: the setting, its types, the value."""
    message = one_line(error)
    wrong = re.match(r'Parser key "([\w.]+)"', message)
    if wrong is None:
        return message
    name = wrong.group(1)
    value = message.rpartition("Given value: ")[2] if "Given value: " in message else None
    value = value or message.rpartition("Got value: ")[2]
    section, _, leaf = name.rpartition(".")
    owner = getattr(Recipe(), section) if section else Recipe()
    expected = next((f.type for f in fields(owner) if f.name == leaf), "another type")
    expected = str(expected).replace("Auto", "'auto'").replace("Literal", "one of ")
    return f"{name} is {value}, but must be {expected.replace(' | ', ' or ')}"


def one_line(error: Exception) -> str:
    """Return an error's message without its line breaks."""
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _read_tree(source: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    import yaml

    path = _find(source)
    if path.resolve() in above:
        raise ValueError(f"{path} is its own base, by way of {', '.join(map(str, above))}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold settings as `name: value`, not a {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    beside = path.parent / f"{base}.yaml"
    below = _read_tree(beside if beside.is_file() else base, (*above, path.resolve()))
    return _merge(below, tree)


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in recipe_names():
        return Path(str(resources.files("convnext") / "recipes" / f"{source}.yaml"))
    raise ValueError(f"there is no recipe {str(source)!r}{nearest(str(source), recipe_names())}")


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) else value
    return merged


def _check_keys(tree: Mapping[str, Any], like: Any, where: str, prefix: str = "") -> None:
    known = {f.name: getattr(like, f.name) for f in fields(like)}
    for key, value in tree.items():
        if key not in known:
            raise ValueError(f"{where}: there is no setting {prefix}{key!s}{nearest(key, known)}")
        if is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {prefix}{key} is a section of settings, not {value!r}")
            _check_keys(value, known[key], where, f"{prefix}{key}.")
