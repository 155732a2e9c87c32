"""Weights in and out: recognise a layout, load it safely, write it in another one."""

from convnext.weights.convert import convert as convert
from convnext.weights.export import export_weights as export_weights
from convnext.weights.infer import infer_model as infer_model
from convnext.weights.layouts import LAYOUT_NAMES as LAYOUT_NAMES
from convnext.weights.load import load_weights as load_weights
from convnext.weights.published import find_published as find_published
from convnext.weights.published import published as published
from convnext.weights.report import ConvertReport as ConvertReport
from convnext.weights.report import LoadReport as LoadReport
from convnext.weights.sources import read_source as read_source
