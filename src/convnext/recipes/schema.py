"""The settings of a recipe that all tasks read, and the frame of a task's recipe.

A field that reads `auto` is resolved by the task when it has seen the data, the weights and the
device. `A` says which: it is `Literal["auto"]` in what was asked for (`Recipe`), and nothing in
what was resolved (`ResolvedRecipe`), so that a type checker knows that a number is a number.
Fields of type `Auto` may read `auto` to the end: the network's own value, or the best there is.

Each task has a recipe of its own in its folder: it adds sections, and settings to those here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Never, Self, TypeAlias, cast

from convnext.names import nearest

Auto: TypeAlias = Literal["auto"]
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    A = TypeVar("A", covariant=True, default=Auto)
else:
    from typing import TypeVar

    A = TypeVar("A", covariant=True)

AUTO: Any = "auto"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def bounds(low: float, high: float | None = None) -> dict[str, Any]:
    """Return the metadata of a field whose number lies between `low` and `high`, if that is one."""
    return {"bounds": (low, high)}


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """What differs from the named network; for a peer of timm, what it understands of it.

    For peers `auto` leaves the network as its name says; for rungs of the road too, but for the
    stem's stride, stochastic depth and first weights, which follow the data.
    """

    drop_path_rate: float | Auto = AUTO
    """Stochastic depth of the last block."""
    layer_scale_init: float | Auto = AUTO
    """First value of the layer scale; 0 leaves it out. Not for peers."""
    stem: Literal["auto", "patchify", "conv_pool"] = "auto"
    """ConvNeXt's patches, or ResNet's convolution and pooling. Not for peers."""
    stem_stride: int | Auto = AUTO
    """Pixels per position after the stem: 4, or 2 or 1 for small images. Not for peers."""
    norm: Literal["auto", "layer", "batch"] = "auto"
    """Layer norm, or batch norm as on the road before `bn_to_ln`. Not for peers."""
    init: Literal["auto", "paper", "fan_in"] = "auto"
    """First weights, from scratch: std 0.02 as in the paper, or by the width. Not for peers."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Any other field of `NetworkConfig` (or argument of the timm network) and its value."""


@dataclass(frozen=True, kw_only=True)
class InputRecipe(Generic[A]):
    """How an image becomes the network's input, in training, evaluation, prediction and export."""

    image_size: int | A = field(default=AUTO, metadata=bounds(0))
    """Side of the square that the network sees, in pixels; for dense tasks the short side of the
    image, where 0 leaves images as they are."""
    interpolation: Literal["bicubic", "bilinear", "nearest"] | A = AUTO
    in_chans: int | A = AUTO
    """1 for greyscale, 3 for RGB."""
    mean: tuple[float, ...] | A = AUTO
    """Per channel, of values in [0, 1]."""
    std: tuple[float, ...] | A = AUTO


@dataclass(frozen=True, kw_only=True)
class DenseInputRecipe(InputRecipe[A]):
    """How an image becomes the input of a network that predicts something at every pixel."""

    max_size: int = field(default=0, metadata=bounds(0))
    """The long side at most; 0 for no limit."""


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe(Generic[A]):
    """What happens to training images only."""

    hflip: float | A = AUTO
    """Probability of a horizontal flip."""
    vflip: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OptimRecipe(Generic[A]):
    """AdamW, and the batch that one of its steps sees."""

    lr: float | A = field(default=AUTO, metadata=bounds(0))
    """Peak learning rate, for the stated `batch_size`; never rescaled behind your back."""
    batch_size: int | A = field(default=AUTO, metadata=bounds(1))
    """Images per optimizer step, over all devices."""
    micro_batch_size: int | A = field(default=AUTO, metadata=bounds(1))
    """Images per device and backward pass; the steps in between accumulate gradients."""
    weight_decay: float | A = field(default=AUTO, metadata=bounds(0))
    """None on biases and on parameters of one dimension."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float | A = field(default=AUTO, metadata=bounds(0, 1))
    """Factor on the learning rate per group of blocks from the head down; 1 for none."""
    layer_decay_by: Literal["layer", "stage"] = "layer"
    """Groups of three blocks, as for classification and COCO, or whole stages as for ADE20K."""
    clip_grad: float | A = field(default=AUTO, metadata=bounds(0))
    """Largest norm of the gradient; 0 for no clipping."""


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe(Generic[A]):
    """Linear warm-up, then a descent, per step."""

    epochs: int | A = field(default=AUTO, metadata=bounds(1))
    steps: int = field(default=0, metadata=bounds(0))
    """Length in optimizer steps, as recipes of segmentation give it; 0 for `epochs`."""
    warmup_epochs: float | A = field(default=AUTO, metadata=bounds(0))
    warmup_steps: int = field(default=0, metadata=bounds(0))
    """Warm-up in steps; 0 for `warmup_epochs`."""
    warmup_ratio: float = field(default=0.0, metadata=bounds(0, 1))
    """Share of the peak at which the warm-up begins."""
    shape: Literal["cosine", "polynomial", "multistep"] = "cosine"
    """How the rate falls after the warm-up."""
    power: float = field(default=1.0, metadata=bounds(0))
    """Of the polynomial; 1 is a straight line."""
    milestones: tuple[float, ...] = ()
    """Epochs at which a multistep schedule takes a tenth of the rate."""
    min_lr: float = field(default=1e-6, metadata=bounds(0))
    """Where cosine and polynomial end."""


@dataclass(frozen=True, kw_only=True)
class EmaRecipe(Generic[A]):
    """The exponential moving average of the weights."""

    decay: float | A = field(default=AUTO, metadata=bounds(0, 0.9999999))
    """Per step; 0 for none. The horizon is 1 / (1 - decay) steps."""


@dataclass(frozen=True, kw_only=True)
class LoaderRecipe(Generic[A]):
    """How samples reach the network."""

    workers: int | A = field(default=AUTO, metadata=bounds(0))
    """Processes that decode and augment; 0 does it in the training process."""
    cache: bool | A = AUTO
    """Keep decoded images in memory, where the data set is small."""
    max_bad_share: float = field(default=0.01, metadata=bounds(0, 1))
    """The run fails when more than this share of the images cannot be read, and more than one."""
    val_share: float = 0.2
    """Share of each class held out for validation, where the data has no split of its own."""


@dataclass(frozen=True, kw_only=True)
class RunRecipe(Generic[A]):
    """Where and in which precision the run executes, when it is measured, and its seed."""

    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto` for the best there is."""
    precision: Literal["fp32", "bf16", "fp16"] | A = AUTO
    devices: int | Auto = field(default=AUTO, metadata=bounds(1))
    """Processes on this machine; `auto` is what torchrun or srun started, else one."""
    num_nodes: int = field(default=1, metadata=bounds(1))
    """Machines; all of them must be started by torchrun or srun."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several devices: a copy of the network on each, or a share of it (`convnext_xlarge`)."""
    channels_last: bool | Auto = AUTO
    """Memory format of images and weights; `auto` measures in long runs, else takes it."""
    compile: bool | Auto = AUTO
    """Train through torch.compile; `auto` measures in long runs, else leaves it."""
    fused: bool = True
    """Train blocks of ConvNeXt as one operation on a CPU (eager mode): the same up to rounding."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    deterministic: bool = False
    """The same bits every time on a GPU too, at some cost in speed; nothing is measured first."""
    eval_every: int | A = field(default=AUTO, metadata=bounds(0))
    """Epochs between evaluations; the last step is always evaluated."""
    save_every: int | A = field(default=AUTO, metadata=bounds(1))
    """Steps between saved states, beside those of evaluations: what a crash can cost."""
    patience: int = field(default=0, metadata=bounds(0))
    """Stop after this many evaluations without a better one; 0 never stops early."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """When a loss is no number: stop, or go on from the last good state at half the rate."""
    loggers: tuple[str, ...] = ()
    """`wandb`, `mlflow`, beside TensorBoard, which is always on."""
    reference: str = "none"
    """A curve to compare with: a run folder, its metrics.jsonl, or a CSV of `epoch,<metric>`."""
    reference_tolerance: float = field(default=2.0, metadata=bounds(0))
    """How far below the reference an evaluation may be before the run warns, in points."""
    seed: int = field(default=0, metadata=bounds(0, 2**32 - 1))


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[A]):
    """Everything that determines a run, as it was asked for.

    `Recipe(task="segment", ...)` is an object of that task's own class, with its own sections.
    """

    noun: ClassVar[str] = ""
    """What the task is called in messages."""
    task: str = ""
    model: str | A = AUTO
    """A name of `convnext models`, or `timm/<name>`."""
    weights: str = "none"
    """Where training starts: `none`, a tag of `convnext models`, a path, or a hub id."""
    data: str = "digits"
    """A folder, an address of shards, or `digits` for the bundled data set."""
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    input: InputRecipe[A] = field(default_factory=InputRecipe)
    augment: AugmentRecipe[A] = field(default_factory=AugmentRecipe)
    optim: OptimRecipe[A] = field(default_factory=OptimRecipe)
    schedule: ScheduleRecipe[A] = field(default_factory=ScheduleRecipe)
    ema: EmaRecipe[A] = field(default_factory=EmaRecipe)
    loader: LoaderRecipe[A] = field(default_factory=LoaderRecipe)
    run: RunRecipe[A] = field(default_factory=RunRecipe)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What a user should know about how it was read; not a setting."""

    def __new__(cls, **settings: Any) -> Self:
        """Return an object of the class of the recipe's task."""
        if cls is not Recipe:
            return super().__new__(cls)
        return object.__new__(cast("type[Self]", recipe_type(settings.get("task", ""))))

    def __post_init__(self) -> None:
        """Check that the recipe is one of its task.

        Raises:
            ValueError: If it is not.
        """
        own = type(self).__dataclass_fields__["task"].default
        if self.task != own:
            raise ValueError(
                f"a recipe of {self.noun} cannot become one of {self.task!r} in this way; "
                "change_recipe takes what both have"
            )


ResolvedRecipe: TypeAlias = Recipe[Never]
"""A recipe without any setting that its task resolves."""

# Where the recipe of each task is; the tasks register theirs when their package is imported.
_PLACES: dict[str, str] = {}


def register_recipe(task: str, place: str) -> None:
    """Make a task's recipe known, as `package.module.Class`; nothing is imported yet."""
    _PLACES[task] = place


def recipe_type(task: str = "") -> type[Recipe]:
    """Return the class of a task's recipes; "" is the default task.

    Raises:
        ValueError: If there is no such task; the nearest one is suggested.
    """
    types = recipe_types()
    if task and task not in types:
        raise ValueError(f"there is no task {task!r}{nearest(task, types)}")
    return types[task or next(iter(types))]


@cache
def recipe_types() -> dict[str, type[Recipe]]:
    """Return the classes of the recipes of all tasks."""
    # Tasks lie above recipes, so they are asked for by name: a deleted one is not missed.
    importlib.import_module("convnext.tasks")
    places = {task: place.rpartition(".") for task, place in _PLACES.items()}
    return {t: getattr(importlib.import_module(m), name) for t, (m, _, name) in places.items()}
