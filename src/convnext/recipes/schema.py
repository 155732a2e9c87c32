"""The recipe settings shared by all tasks, and the base class of every task's recipe.

The task resolves fields set to `auto` once it has seen the data, the weights and the device. The
type parameter `A` marks these fields: it is `Literal["auto"]` in a `Recipe` and `Never` in a
`ResolvedRecipe`, where a type checker therefore sees plain numbers. Fields of type `Auto` may stay
`auto`: they stand for the network's own value, or for the best one available.

Each task subclasses `Recipe` in its own folder and adds sections and settings.
"""

from __future__ import annotations

import importlib
import numbers
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Never,
    Self,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
)

from convnext.names import nearest

Auto: TypeAlias = Literal["auto"]
Speedup = Literal["folded", "eager", "fastest"]
"""How `evaluate` runs a network: folded from the start, so that scores do not depend on how fast
the machine is at the moment; unmodified; or on a backend that may get faster during the job."""
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    A = TypeVar("A", covariant=True, default=Auto)
else:
    from typing import TypeVar

    A = TypeVar("A", covariant=True)

AUTO: Any = "auto"
OptimizerName = Literal["adamw", "nadamw", "laprop", "lamb", "lion", "muon", "sgd"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def bounds(low: float, high: float | None = None) -> dict[str, Any]:
    """Return the metadata of a numeric field that must lie between `low` and `high`."""
    return {"bounds": (low, high)}


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """Changes to the named network; a timm model accepts only some of them.

    For timm models `auto` keeps the network as named. For steps of the roadmap it does too, except
    that stem stride, stochastic depth and initialization depend on the data.
    """

    drop_path_rate: float | Auto = AUTO
    """Stochastic depth rate of the last block."""
    layer_scale_init: float | Auto = AUTO
    """Initial value of the layer scale; 0 removes it. Not for timm models."""
    stem: Literal["auto", "patchify", "conv_pool"] = "auto"
    """ConvNeXt's patchify stem, or ResNet's convolution and pooling. Not for timm models."""
    stem_stride: int | Auto = AUTO
    """Stride of the stem in pixels: 4, or 2 or 1 for small images. Not for timm models."""
    norm: Literal["auto", "layer", "batch"] = "auto"
    """Layer norm, or batch norm as in the roadmap before `bn_to_ln`. Not for timm models."""
    init: Literal["auto", "paper", "fan_in"] = "auto"
    """Initialization: std 0.02 as in the paper, or scaled by fan-in. Not for timm models."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Any other fields of `NetworkConfig`, or arguments of the timm model, with their values."""


@dataclass(frozen=True, kw_only=True)
class InputRecipe(Generic[A]):
    """Preprocessing of images, in training, evaluation, prediction and export."""

    image_size: int | A = field(default=AUTO, metadata=bounds(0))
    """Side of the square input in pixels; for segmentation and detection the short side, where 0
    keeps the size."""
    interpolation: Literal["bicubic", "bilinear", "nearest"] | A = AUTO
    """Filter that resizes images."""
    in_chans: int | A = AUTO
    """Input channels: 1 for grayscale, 3 for RGB, or the number of bands."""
    mean: tuple[float, ...] | A = AUTO
    """Mean of each channel, for pixel values in [0, 1]."""
    std: tuple[float, ...] | A = AUTO
    """Standard deviation of each channel."""
    range: tuple[float, ...] = ()
    """Values of 16-bit and float images that become black and white, such as 0,4095, or a pair for
    each channel; by default the 0.1 and 99.9 percentiles of the training images. Images of 8 bits
    are not affected."""
    bands: tuple[int, ...] = ()
    """Bands of the images that become the input channels, such as 4,3,2; by default all."""


@dataclass(frozen=True, kw_only=True)
class DenseInputRecipe(InputRecipe[A]):
    """Preprocessing of images for segmentation and detection."""

    max_size: int = field(default=0, metadata=bounds(0))
    """Maximum long side in pixels; 0 for no limit."""


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe(Generic[A]):
    """Augmentation of training images."""

    hflip: float | A = AUTO
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""


@dataclass(frozen=True, kw_only=True)
class OptimRecipe(Generic[A]):
    """The optimizer and its batch size."""

    name: OptimizerName = "adamw"
    """The optimizer, as `timm.optim` has it; `auto` scales learning rate and weight decay to it."""
    lr: float | A = field(default=AUTO, metadata=bounds(0))
    """Peak learning rate for the given `batch_size`; it is never rescaled."""
    batch_size: int | A = field(default=AUTO, metadata=bounds(1))
    """Images per optimizer step, over all devices."""
    micro_batch_size: int | A = field(default=AUTO, metadata=bounds(1))
    """Images per device and backward pass; gradients accumulate over a batch."""
    weight_decay: float | A = field(default=AUTO, metadata=bounds(0))
    """Weight decay, not for biases and other vectors."""
    betas: tuple[float, float] | Auto = AUTO
    """Decay of the moving averages of the gradient and its square; `auto` is the optimizer's own,
    0.9,0.999 for adamw. Not for sgd."""
    eps: float | Auto = field(default=AUTO, metadata=bounds(0))
    """Added to the denominator; `auto` is the optimizer's own, 1e-8 for adamw. Not for sgd and
    lion."""
    momentum: float | Auto = field(default=AUTO, metadata=bounds(0, 1))
    """Momentum of sgd and muon; `auto` is 0.9 and 0.95."""
    layer_decay: float | A = field(default=AUTO, metadata=bounds(0, 1))
    """Learning rate factor from one group of layers to the group below it; 1 for none."""
    layer_decay_by: Literal["layer", "stage"] = "layer"
    """Group three blocks each, as for classification and COCO, or whole stages as for ADE20K."""
    clip_grad: float | A = field(default=AUTO, metadata=bounds(0))
    """Maximum gradient norm; 0 for no clipping."""
    freeze: str = "none"
    """Keep pretrained weights and norms: `backbone` (all but the head), `stages:2` (stem and two
    stages), or `none`."""
    unfreeze_at: float = field(default=0.0, metadata=bounds(0))
    """Epoch from which frozen parts train too; 0 for never."""


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe(Generic[A]):
    """Learning rate schedule: linear warm-up, then decay, updated every step."""

    epochs: int | A = field(default=AUTO, metadata=bounds(1))
    """Times that training passes over all images."""
    steps: int = field(default=0, metadata=bounds(0))
    """Length of training in optimizer steps, usual for segmentation; 0 for `epochs`."""
    warmup_epochs: float | A = field(default=AUTO, metadata=bounds(0))
    """Length of the warm-up in epochs."""
    warmup_steps: int = field(default=0, metadata=bounds(0))
    """Length of the warm-up in steps; 0 for `warmup_epochs`."""
    warmup_ratio: float = field(default=0.0, metadata=bounds(0, 1))
    """Learning rate at the start of the warm-up, as a fraction of the peak."""
    shape: Literal["cosine", "polynomial", "multistep"] = "cosine"
    """How the learning rate decays after the warm-up."""
    power: float = field(default=1.0, metadata=bounds(0))
    """Exponent of the polynomial schedule; 1 is linear."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the multistep schedule divides the learning rate by ten."""
    min_lr: float = field(default=1e-6, metadata=bounds(0))
    """Final learning rate of the cosine and polynomial schedules."""


@dataclass(frozen=True, kw_only=True)
class EmaRecipe(Generic[A]):
    """Exponential moving average (EMA) of the weights."""

    decay: float | A = field(default=AUTO, metadata=bounds(0, 0.9999999))
    """Decay per step; 0 for no EMA. It averages over about 1 / (1 - decay) steps."""


@dataclass(frozen=True, kw_only=True)
class LoaderRecipe(Generic[A]):
    """Data loading."""

    workers: int | A = field(default=AUTO, metadata=bounds(0))
    """Processes that load and augment images; 0 uses the training process."""
    cache: bool | A = AUTO
    """Keep decoded images in memory; `auto` does so for small data sets."""
    max_bad_share: float = field(default=0.01, metadata=bounds(0, 1))
    """Fail if more than this fraction of the images cannot be read, and more than one."""
    val_share: float = 0.2
    """Fraction of each class held out for validation if the data has no split of its own."""
    group: str = ""
    """Keep images of one patient, video or place in one split: a regular expression whose first
    parenthesis is the group in the path of an image, such as `(patient\\d+)`, or a column of a
    table."""


@dataclass(frozen=True, kw_only=True)
class RunRecipe(Generic[A]):
    """Device, precision, seed, evaluation and logging."""

    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the fastest."""
    precision: Literal["fp32", "bf16", "fp16"] | A = AUTO
    """Number format: fp32, or mostly 16 bits with bf16 or fp16, for speed; `auto` takes bf16 where
    that is fast, else fp32."""
    devices: int | Auto = field(default=AUTO, metadata=bounds(1))
    """Processes on this machine, one per device; `auto` follows torchrun or srun, else one."""
    threads: int | Auto = field(default=AUTO, metadata=bounds(1))
    """CPU threads of each process, which the last bits of a result depend on; `auto` takes
    OMP_NUM_THREADS, or divides the cores that this process may use among those of the machine."""
    num_nodes: int = field(default=1, metadata=bounds(1))
    """Number of machines; torchrun or srun must start all of them."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """On several devices, replicate the network (ddp) or shard it (fsdp)."""
    channels_last: bool | Auto = AUTO
    """Memory format of images and weights; `auto` measures both in long runs, otherwise uses it."""
    compile: bool | Auto = AUTO
    """Train with torch.compile; `auto` measures both in long runs, otherwise does not use it."""
    fused: bool = True
    """Fuse ConvNeXt blocks on a CPU in eager mode; results are equal up to rounding."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    deterministic: bool = False
    """Make GPU runs reproducible bit for bit; slower, because no backends are measured."""
    eval_every: int | A = field(default=AUTO, metadata=bounds(0))
    """Epochs between evaluations; the last step has one too."""
    save_every: int | A = field(default=AUTO, metadata=bounds(1))
    """Steps between saved states, in addition to those saved at evaluations."""
    patience: int = field(default=0, metadata=bounds(0))
    """Stop after this many evaluations without improvement; 0 never stops early."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """If the loss is not finite, stop, or resume the last good state at half the learning rate."""
    loggers: tuple[str, ...] = ()
    """Loggers in addition to TensorBoard: `wandb`, `mlflow`."""
    reference: str = "none"
    """A curve to compare with: a run folder, its metrics.jsonl, or a CSV of `epoch,<metric>`."""
    reference_tolerance: float = field(default=2.0, metadata=bounds(0))
    """Warn when an evaluation is more than this many points below the reference."""
    seed: int = field(default=0, metadata=bounds(0, 2**32 - 1))
    """Seed of initial weights, order of images and augmentation."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[A]):
    """Task, data, network and initial weights of a run.

    The other settings are in sections. `Recipe(task="segment", ...)` returns an instance of that
    task's subclass.
    """

    noun: ClassVar[str] = ""
    """The name of the task in messages."""
    task: str = ""
    model: str | A = AUTO
    """A name from `convnext models`, or `timm/<name>`."""
    weights: str = "none"
    """Initial weights: `none`, a tag from `convnext models`, a path, or a hub id."""
    data: str = "digits"
    """A folder, a URL of shards, or `digits` for the bundled data set."""
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    input: InputRecipe[A] = field(default_factory=InputRecipe)
    augment: AugmentRecipe[A] = field(default_factory=AugmentRecipe)
    optim: OptimRecipe[A] = field(default_factory=OptimRecipe)
    schedule: ScheduleRecipe[A] = field(default_factory=ScheduleRecipe)
    ema: EmaRecipe[A] = field(default_factory=EmaRecipe)
    loader: LoaderRecipe[A] = field(default_factory=LoaderRecipe)
    run: RunRecipe[A] = field(default_factory=RunRecipe)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Notes for the user about how the recipe was read; not a setting."""

    def __new__(cls, **settings: Any) -> Self:
        """Return an instance of the task's subclass."""
        if cls is not Recipe:
            return super().__new__(cls)
        return object.__new__(cast("type[Self]", recipe_type(settings.get("task", ""))))

    def __post_init__(self) -> None:
        """Check that the task is the one of this class.

        Raises:
            ValueError: If it is not.
        """
        own = type(self).__dataclass_fields__["task"].default
        if self.task != own:
            raise ValueError(
                f"a recipe for {self.noun} cannot be changed to task {self.task!r} like this; "
                "use change_recipe, which keeps the settings that both tasks have"
            )


ResolvedRecipe: TypeAlias = Recipe[Never]
"""A recipe in which the task has resolved every `auto`."""

# The import path of each task's recipe; tasks register theirs when their package is imported.
_PLACES: dict[str, str] = {}


def register_recipe(task: str, place: str) -> None:
    """Register a task's recipe class by its path `package.module.Class`, without importing it."""
    _PLACES[task] = place


def recipe_type(task: str = "") -> type[Recipe]:
    """Return the recipe class of a task; "" is the default task.

    Raises:
        ValueError: If there is no such task; the nearest one is suggested.
    """
    types = recipe_types()
    if not isinstance(task, str):  # Recipes are files from anywhere.
        raise ValueError(f"task is {task!r:.40}, but must be a name: {', '.join(types)}")
    if task and task not in types:
        raise ValueError(f"there is no task {task!r}{nearest(task, types)}")
    return types[task or next(iter(types))]


@cache
def recipe_types() -> dict[str, type[Recipe]]:
    """Return the recipe classes of all tasks."""
    # Recipes must not import tasks, the layer above; a name also survives a task's deletion.
    importlib.import_module("convnext.tasks")
    places = {task: place.rpartition(".") for task, place in _PLACES.items()}
    return {t: getattr(importlib.import_module(m), name) for t, (m, _, name) in places.items()}


def check_value(option: str, value: Any, hint: Any) -> None:
    """Check an argument that is one of a fixed set, a number, or true or false.

    Others are checked where they are used.

    Args:
        option: The name for messages, such as "--precision".
        value: The argument.
        hint: Its type.

    Raises:
        TypeError: If it should be a number, or true or false.
        ValueError: If it is not one of the set.
    """
    kinds = [kind for kind in _parts(hint) if kind is not type(None)]
    if not kinds or (value is None and type(None) in _parts(hint)):
        return
    if all(get_origin(kind) is Literal for kind in kinds):
        words = [word for kind in kinds for word in get_args(kind)]
        if value not in words:
            listed = ", ".join(map(str, words))
            near = nearest(str(value), map(str, words))
            near = near if "did you mean" in near else ""
            raise ValueError(f"{option} is {value!r}, but must be one of {listed}{near}")
    elif {*kinds} <= {bool, int, float}:
        is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"
        accepted = numbers.Real if float in kinds else numbers.Integral
        if is_bool != (bool in kinds) or not (is_bool or isinstance(value, accepted)):
            names = {bool: "True or False", int: "a whole number", float: "a number"}
            wanted = " or ".join(names[kind] for kind in kinds)
            raise TypeError(f"{option} is {value!r}, but must be {wanted}")


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, without annotations."""
    if get_origin(hint) is Annotated:
        return _parts(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return tuple(part for member in get_args(hint) for part in _parts(member))
    return (hint,)
