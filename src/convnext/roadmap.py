from convnext.road import *
from convnext.road import Rung, REGIMES, RESNET50, roadmap  # noqa
