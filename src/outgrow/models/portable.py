"""Export a net to files that run without this library: ONNX, and torch.export's ``.pt2``.

Both take RGB images in [0, 1] and include the normalisation. ``facts`` (classes, input, description) are stored
in the file: in ONNX's ``metadata_props``, and as ``outgrow.json`` in a ``.pt2``.
"""

import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from outgrow.models.network import Network

FACTS = "outgrow.json"
"""The name of the facts in a ``.pt2`` file."""
LEAST_SIDE = 32
"""The smallest height and width, in pixels, of a graph that takes any size."""
LEGACY_OPSET = 17
"""ONNX opset of detectors' graphs: the highest that the older exporter writes."""


class Normalised(nn.Module):
    """What an exported file computes: images in [0, 1], at the net's input size, to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.net = network.net
        self.register_buffer("mean", network.mean.clone())
        self.register_buffer("std", network.std.clone())

    def forward(self, images: Tensor) -> Tensor:
        output = self.net((images - self.mean) / self.std)
        return getattr(output, "logits", output)


def require(*packages: str, what: str) -> None:
    """``ValueError`` if a package of the extra ``export`` is not installed."""
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{what}: needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}, got none installed; "
            "pip install 'outgrow[export]'."
        )


def program_of(network: Network, side: tuple[int, int], *, any_size: bool) -> tuple[ExportedProgram, bool]:
    """Export ``network`` in eval mode to a graph with a dynamic batch size; returns it and whether it takes any size.

    ``side`` is the height and width of the images. With ``any_size`` these are dynamic too; if the graph
    depends on the size, it is exported for ``side`` instead.
    """
    module = Normalised(network).eval()
    images = torch.rand(2, 3, *side, device=network.mean.device)
    batch = Dim("batch", min=1)
    shapes: list[dict[int, Any]] = [{0: batch}]
    if any_size:
        least = min(LEAST_SIDE, *side)
        shapes.insert(0, {0: batch, 2: Dim("height", min=least), 3: Dim("width", min=least)})
    for shape in shapes:
        try:
            with _quiet():
                program = torch.export.export(module, (images,), dynamic_shapes=(shape,))
            return program, len(shape) > 1
        except Exception as error:  # torch.export raises many types
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    raise ValueError(
        f"export {network.name}: needs a net that torch.export can trace, got an error from it ({reason[:300]}); export "
        "only the weights (--format safetensors)."
    )


def exported_program(module: nn.Module, example: Float[Tensor, "3 _ _"], *, name: str) -> ExportedProgram:
    """Export a module that takes one image of any size from :data:`LEAST_SIDE` on. ``ValueError`` if it cannot be traced."""
    shape = {1: Dim("height", min=LEAST_SIDE), 2: Dim("width", min=LEAST_SIDE)}
    try:
        with _quiet():
            return torch.export.export(module, (example,), dynamic_shapes=(shape,))
    except Exception as error:  # torch.export raises many types
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"export {name}: needs a net that torch.export can trace, got an error from it ({reason[:300]}); export "
            "it as onnx or safetensors (--format)."
        ) from error


def write_program(program: ExportedProgram, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a ``.pt2`` file. ``torch.export.load(path).module()`` reads it without the net's source code."""
    content = io.BytesIO()  # on a full disk torch would abort the process
    with _quiet():
        torch.export.save(program, content, extra_files={FACTS: json.dumps(facts)})
    path.write_bytes(content.getvalue())


def write_onnx(program: ExportedProgram, path: Path, facts: Mapping[str, Any]) -> None:
    """Write an ONNX file with the input ``images`` and the output ``logits``."""
    require("onnx", "onnxscript", what="export to ONNX")
    with _quiet():
        torch.onnx.export(
            program,
            (),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    describe_onnx(path, facts)


def write_traced_onnx(
    module: nn.Module,
    example: Tensor,
    path: Path,
    facts: Mapping[str, Any],
    *,
    names: tuple[str, Sequence[str]],
    dynamic: Mapping[str, Mapping[int, str]],
) -> None:
    """Write an ONNX file with torch's older exporter, which supports the data-dependent shapes of detectors.

    ``names`` are the name of the input and the names of the outputs.
    """
    require("onnx", what="export to ONNX")
    with _quiet():
        torch.onnx.export(
            module,
            (example,),
            path,
            input_names=[names[0]],
            output_names=list(names[1]),
            dynamic_axes={key: dict(axes) for key, axes in dynamic.items()},
            opset_version=LEGACY_OPSET,
            dynamo=False,
        )
    describe_onnx(path, facts)


def describe_onnx(path: Path, facts: Mapping[str, Any]) -> None:
    """Add ``facts`` to an ONNX file: strings as they are, everything else as JSON."""
    import onnx

    model = onnx.load(path)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, path)


def read_program(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Read a file of :func:`write_program`: the module and the facts. ``ValueError`` for any other file."""
    extra = {FACTS: ""}
    try:
        with _quiet():
            module = torch.export.load(path, extra_files=extra).module()
    except Exception as error:  # a damaged archive raises RuntimeError, KeyError, BadZipFile, ...
        raise ValueError(
            f"needs a .pt2 file of torch.export, got {path}, which cannot be read "
            f"({(str(error) or type(error).__name__).splitlines()[0][:200]}); export it again."
        ) from None
    return module, _checked(json.loads(extra[FACTS] or "{}"), path)


class OnnxModel:
    """An ONNX file that ``outgrow export`` wrote, run by onnxruntime on the CPU: tensors in, tensors out."""

    def __init__(self, path: Path) -> None:
        require("onnxruntime", what=str(path))
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exception types have no common base class
            raise ValueError(
                f"needs an ONNX file, got {path}, which cannot be read ({str(error).splitlines()[0][:200]}); export it "
                "again."
            ) from None
        stated = self.session.get_modelmeta().custom_metadata_map
        self.facts = _checked({key: _decoded(text) for key, text in stated.items()}, path)
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: Float[Tensor, "..."]) -> list[Tensor]:
        found = self.session.run(None, {self.input: images.detach().cpu().contiguous().numpy()})
        return [torch.from_numpy(value) for value in found]


def _checked(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    if "classes" not in facts:
        raise ValueError(
            f"needs a file that `outgrow export` wrote, got {path} without classes in its metadata; export it again."
        )
    return facts


def _decoded(text: str) -> Any:
    try:
        return json.loads(text) if text[:1] in ("[", "{") else text
    except json.JSONDecodeError:
        return text


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' warnings, which concern only their own internals."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield
