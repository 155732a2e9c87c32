"""Run an exported classifier without this package, with onnxruntime, numpy and Pillow.

convnext export runs/first --format onnx --preprocess full --output first.onnx
python examples/07_serve_onnx.py first.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(path: str, photos: list[str]) -> None:
    """Print the best class of each photo and its probability."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    classes = json.loads(facts["classes"])
    channels = json.loads(facts["preprocessing"])["in_chans"]
    name = session.get_inputs()[0].name
    for photo in photos:
        image = ImageOps.exif_transpose(Image.open(photo)).convert("L" if channels == 1 else "RGB")
        pixels = np.asarray(image).reshape(1, image.height, image.width, channels)
        (probabilities,) = session.run(None, {name: pixels})[0]
        best = int(probabilities.argmax())
        print(f"{photo}  {classes[best]}  {100 * probabilities[best]:.1f} %")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
