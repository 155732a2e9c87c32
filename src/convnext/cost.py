from convnext.costs import *
from convnext.costs import Cost, cost, in_chans  # noqa
