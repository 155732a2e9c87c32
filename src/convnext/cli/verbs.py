"""The verbs of the command line: their functions in `convnext.api`, and examples."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convnext.api.settings import DEFAULT_FOLDER


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of the command line."""

    summary: str
    function: str
    """A name in `convnext.api`."""
    example: str
    switches: Mapping[str, str] = field(default_factory=dict)
    """Options that switch to another function, such as `--robustness`, and its name."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that the command line passes unless the user gives another value."""
    former: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Options of earlier versions, and the words that they stand for."""
    note: str = ""
    """The last lines of the help."""

    def load(self, switch: str = "") -> Callable[..., Any]:
        """Import the verb's function, or the one that `switch` selects."""
        name = self.switches[switch] if switch else self.function
        function: Callable[..., Any] = getattr(importlib.import_module("convnext.api"), name)
        return function


SETTINGS = "Every recipe setting is an option; --help-all lists them all."

VERBS: dict[str, Verb] = {
    "train": Verb(
        summary="train a network on your images, or on the bundled digits",
        function="train",
        switches={"show_groups": "learning_rates"},
        example="""\
convnext train
convnext train --data my_photos
convnext train --data my_photos --model convnext_tiny --weights fb_in22k_ft_in1k
convnext train --data my_photos --epochs 50 --lr 1e-3 --output runs/first
convnext train --resume --output runs/first
convnext train --resume --output runs/first --epochs 90              # train longer
convnext train --data my_photos --weights runs/first                 # start from its weights
convnext train imagenet1k_tiny --data shards --devices 8             # see docs/scaling.md""",
        note="On SIGTERM, SIGINT, SIGUSR1 or SIGHUP a run saves its state and exits with code 75.\n"
        + SETTINGS,
    ),
    "evaluate": Verb(
        summary="evaluate a trained network on a labeled data set",
        function="evaluate",
        switches={"robustness": "evaluate_robustness"},
        former={"--fast": ("--backend", "fastest"), "--no-fast": ("--backend", "eager")},
        example="""\
convnext evaluate runs/first --data my_photos
convnext evaluate runs/streets --multi-scale --flip --boundary
convnext evaluate runs/first --robustness --severities 1 3 5 --max-images 500
convnext evaluate convnext_tiny.fb_in1k --robustness imagenet-c --output robustness""",
    ),
    "predict": Verb(
        summary="predict the contents of images",
        function="predict",
        fixed={"stream": True, "output": DEFAULT_FOLDER},
        example="""\
convnext predict runs/first photo.jpg more_photos --output predictions
convnext predict runs/streets drive/ --output drive_masks --overlays jpg
convnext predict runs/cells slides/ --output cells --score 0.6""",
    ),
    "roadmap": Verb(
        summary="list the steps from ResNet-50 to ConvNeXt, or train them on your data",
        function="run_roadmap",
        example="""\
convnext roadmap --output roadmap
convnext roadmap --regime mini --data digits --seeds 3 --output runs/roadmap
convnext roadmap --regime mini --data my_photos --from kernel_7 --output runs/last_steps
convnext roadmap --regime mini --data my_photos --ablate kernel_size=3,5,7,9,11 --seeds 3
convnext roadmap --data my_photos --ablate norm=batch,layer --ablate act=relu,gelu --at kernel_7
convnext roadmap --data my_photos --ablate optim.lr=1e-3,2e-3,4e-3
convnext roadmap --data my_photos --rival timm/swin_tiny_patch4_window7_224""",
        note=SETTINGS,
    ),
    "compare": Verb(
        summary="train several networks with one recipe and compare accuracy, cost and speed",
        function="compare",
        example="""\
convnext compare convnext_atto timm/resnet18 --data my_photos --seeds 3
convnext compare convnext_tiny timm/swin_tiny_patch4_window7_224 timm/resnet50 --data my_photos
convnext compare convnext_atto 'wide=convnext_atto:dims=[64,128,256,512]' --data digits
convnext compare convnext_tiny timm/resnet50 --data my_photos --minutes 20    # equal time
convnext compare convnext_tiny@fb_in22k timm/resnet50@weights.safetensors --data my_photos
convnext compare convnext_atto timm/resnet18 --task detect --data cells    # Mask R-CNN on each""",
        note=SETTINGS,
    ),
    "find-lr": Verb(
        summary="suggest a learning rate by a few steps at growing rates",
        function="find_lr",
        example="""\
convnext find-lr --data my_photos
convnext find-lr --data my_photos --weights runs/first --optim.name lion --num-steps 200""",
        note=SETTINGS,
    ),
    "average": Verb(
        summary="average the weights of several runs of one network",
        function="average",
        example="""\
convnext average runs/a runs/b runs/c --output runs/average
convnext average runs/a runs/b --how uniform --data other_photos --output runs/average""",
    ),
    "benchmark": Verb(
        summary="measure the speed of networks on this machine, next to timm's",
        function="benchmark",
        former={"--forms": ("--backends",)},
        example="""\
convnext benchmark convnext_tiny
convnext benchmark convnext_tiny timm/resnet50 --batch 1 8 32 --output speed
convnext benchmark upernet_convnext_tiny mask_rcnn_convnext_tiny --batch 1""",
    ),
    "export": Verb(
        summary="write a network as ONNX, OpenVINO or pt2, and verify it on real images",
        function="export",
        example="""\
convnext export runs/first --format onnx
convnext export runs/first --format openvino --precision int8
convnext export runs/first --format onnx --preprocess full --output flowers.onnx
convnext export runs/streets --format onnx --size any
convnext export runs/cells --format openvino --size 512x768 --masks full
convnext predict flowers.onnx photo.jpg""",
    ),
    "embed": Verb(
        summary="write a feature vector for each image",
        function="embed",
        example="""\
convnext embed runs/first photos/ --output features.npz
convnext embed convnext_tiny.fb_in22k 'photos/*.jpg' --output features.csv""",
    ),
    "convert": Verb(
        summary="write a checkpoint in the layout of another library",
        function="convert",
        example="convnext convert convnext_tiny_1k_224_ema.pth tiny.safetensors --to timm",
    ),
    "models": Verb(
        summary="list networks and their published weights",
        function="find_models",
        example="""\
convnext models 'convnext_*'
convnext models 'timm/swin_*'""",
    ),
    "data": Verb(
        summary="inspect a data set and report its problems",
        function="check_data",
        switches={
            "to_shards": "write_shards",
            "fix": "fix_annotations",
            "to": "convert_annotations",
        },
        example="""\
convnext data my_photos --contact-sheet sheet.png
convnext data my_masks --contact-sheet sheet.png          # images/ and annotations/
convnext data my_photos --to-shards my_shards --resize 512
convnext data my_objects --fix                            # instances_{train,val}.json
convnext data my_voc --to coco --output my_objects        # or YOLO's text files""",
    ),
}
