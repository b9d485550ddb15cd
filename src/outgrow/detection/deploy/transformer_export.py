"""Export a detection transformer to files that load without Outgrow.

safetensors   a folder in the hub's layout, for transformers' ``from_pretrained``, with the image processor's settings
onnx          one image of any size to boxes, labels and scores, with onnxruntime alone
torch         the same as torch.export's ``.pt2``, with torch alone
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from outgrow.detection.boxes import Detections
from outgrow.detection.export import (
    ONNX,
    ONNX_LOADING,
    WEIGHTS,
    Finder,
    Images,
    checked,
    facts_of,
    onnx_finder,
)
from outgrow.detection.families.transformer import Preparation, TransformerDetector, found
from outgrow.detection.families.transformer_create import metadata_of, state_of
from outgrow.models.portable import (
    OnnxModel,
    exported_program,
    read_program,
    write_program,
    write_traced_onnx,
)
from outgrow.models.weights import write_weights
from outgrow.training.deployment import Exported, Request, public_name
from outgrow.training.progress import Reporter

PROGRAM = "model.pt2"
BILINEAR = 2
"""PIL.Image.Resampling.BILINEAR, as image processors have it."""


def export_transformer(
    detector: TransformerDetector, request: Request, compared: Images, report: Reporter
) -> Exported:
    """Write the requested formats. ``ValueError`` if a file's boxes differ from the student's by more than rounding."""
    files, loading = [], []
    facts = facts_of(detector)
    if "safetensors" in request.formats:
        path = request.folder / WEIGHTS
        write_weights(state_of(detector), path, metadata_of(detector, public_name(detector.name)))
        write_settings(detector, request.folder)
        files.append(checked(path, _reloaded(detector, request.folder), detector, compared))
        loading.append(_LOADING.format(model=type(detector.net).__name__))
    names = ("boxes", "labels", "scores")
    if "onnx" in request.formats:
        path = request.folder / ONNX
        write_traced_onnx(
            AnySize(detector).eval(),
            compared.images[0],
            path,
            facts,
            names=("image", names),
            dynamic={"image": {1: "height", 2: "width"}},
        )
        files.append(checked(path, onnx_finder(OnnxModel(path)), detector, compared))
        loading.append(ONNX_LOADING)
    if "torch" in request.formats:
        path = request.folder / PROGRAM
        program = exported_program(AnySize(detector).eval(), compared.images[0], name=detector.name)
        write_program(program, path, facts)
        files.append(checked(path, program_finder(path), detector, compared))
        loading.append(_PROGRAM_LOADING)
    for one in files:
        report.note(f"{one.name} ({one.bytes / 1e6:.2f} MB): {one.check}")
    height, width = detector.preparation.size
    return Exported(
        files=tuple(files),
        library="transformers",
        loading="\n\n".join(loading),
        pipeline="object-detection",
        preparation=f"RGB, with the EXIF orientation applied, divided by 255; transformers' image processor, model.onnx and "
        f"model.pt2 resize to {height} x {width} and normalise",
    )


def write_settings(detector: TransformerDetector, folder: Path) -> None:
    """transformers' ``config.json`` and ``preprocessor_config.json``."""
    config = json.loads(metadata_of(detector)["config"])
    config["architectures"] = [type(detector.net).__name__]
    _write(folder / "config.json", config)
    _write(folder / "preprocessor_config.json", processor_of(detector.preparation))


def processor_of(preparation: Preparation) -> dict[str, Any]:
    """The settings of transformers' image processor that prepares images in the same way."""
    height, width = preparation.size
    return {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": preparation.normalises,
        "image_mean": list(preparation.mean),
        "image_std": list(preparation.std),
        "do_pad": False,
    }


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _reloaded(detector: TransformerDetector, folder: Path) -> Finder:
    """The folder as transformers loads it."""
    net = type(detector.net).from_pretrained(folder).eval()
    again = TransformerDetector(
        net, name=detector.name, classes=detector.classes, preparation=detector.preparation
    )
    return lambda image: again.detect([image])[0]


def program_finder(path: Path) -> Finder:
    """A function that detects with a ``.pt2`` file."""
    module = read_program(path)[0]
    return lambda image: Detections(*module(image))


class AnySize(nn.Module):
    """One image of any size to boxes, labels and scores, without shapes that tracing would fix.

    Bilinear resizing with antialiasing is two products of matrices: a graph with a variable size has no operator for it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: TransformerDetector) -> None:
        super().__init__()
        self.net = detector.net
        self.size = detector.preparation.size
        self.register_buffer("mean", detector.mean[0].clone())
        self.register_buffer("std", detector.std[0].clone())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, height, width = image.shape
        rows, columns = _weights(height, self.size[0]), _weights(width, self.size[1])
        pixels = (rows @ image @ columns.T - self.mean) / self.std
        seen = self.net(pixel_values=pixels[None])
        boxes, labels, scores = found(seen.logits[0], seen.pred_boxes[0].clamp(0, 1), (1.0, 1.0))
        tall, wide = (torch.full((), side, dtype=torch.float32) for side in (height, width))
        return boxes * torch.stack([wide, tall, wide, tall]), labels, scores


def _weights(length: Any, side: int) -> Float[Tensor, "{side} _"]:
    """The share of each of ``length`` pixels in each of ``side`` resized ones: a triangle around its centre.

    ``length`` is a tensor while torch traces.
    """
    scale = torch.full((), length, dtype=torch.float32) / side
    centre = (torch.arange(side) + 0.5) * scale
    away = (torch.arange(length) + 0.5)[None] - centre[:, None]
    share = (1 - away.abs() / scale.clamp(min=1.0)).clamp(min=0)
    return share / share.sum(1, keepdim=True)


_LOADING = """The folder is a checkpoint of transformers:

```python
from PIL import Image
from transformers import AutoImageProcessor, {model}

processor, model = AutoImageProcessor.from_pretrained("."), {model}.from_pretrained(".").eval()
image = Image.open("image.jpg").convert("RGB")
outputs = model(**processor(images=image, return_tensors="pt"))
size = [(image.height, image.width)]
found = processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=size)[0]
```"""
_PROGRAM_LOADING = """`model.pt2` needs only torch. It takes one float32 RGB image in [0, 1], 3 x height x width, of any size from
32 pixels on; a box of label i + 1 has the class i:

```python
import torch

model = torch.export.load("model.pt2").module()
boxes, labels, scores = model(image)
```"""
