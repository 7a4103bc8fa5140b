"""What a model server says of its model, and whether that is the model the artefact was made for."""

from dataclasses import dataclass

from sameguard.errors import ConfigurationError
from sameguard.protocol.model import ModelContract


@dataclass(frozen=True)
class TensorSpec:
    """shape: batch axis included, -1 where variable; None where the server does not tell."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class ModelMetadata:
    """Empty inputs or outputs: the server does not tell."""

    name: str
    versions: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


def check_metadata(metadata: ModelMetadata, model: ModelContract) -> None:
    """Raises ConfigurationError where the served model's input or scored output is not what `model` says: the start-up check."""
    if metadata.name and metadata.name != model.name:
        raise ConfigurationError(f"upstream model must be {model.name!r}, got {metadata.name!r}: check the model's name.")
    if model.version is not None and metadata.versions and model.version not in metadata.versions:
        raise ConfigurationError(f"upstream model {model.name} must have version {model.version!r}, got {list(metadata.versions)}.")
    if metadata.inputs:
        wanted = TensorSpec(model.input.name, model.input.dtype, (-1, *model.input.raw_shape))
        _check_tensor("input", wanted, metadata.inputs)
        if len(metadata.inputs) > 1:
            raise ConfigurationError(f"upstream model {model.name} must have one input, got {[spec.name for spec in metadata.inputs]}.")
    if metadata.outputs:
        width = (-1,) if model.output_kind == "labels" else (-1, model.classes)
        _check_tensor("output", TensorSpec(model.output, "", width), metadata.outputs)
        for name in model.outputs:
            _find("output", name, metadata.outputs)


def _find(what: str, name: str, specs: tuple[TensorSpec, ...]) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise ConfigurationError(f"upstream model must have an {what} {name!r}, got {[spec.name for spec in specs]}: check the {what}'s name.")


def _check_tensor(what: str, wanted: TensorSpec, specs: tuple[TensorSpec, ...]) -> None:
    found = _find(what, wanted.name, specs)
    if wanted.datatype and found.datatype != wanted.datatype:
        raise ConfigurationError(
            f"upstream {what} {found.name!r} must be {wanted.datatype}, got {found.datatype}: check the artefact's input contract."
        )
    if found.shape is None or wanted.shape is None:
        return
    sides = zip(found.shape[1:], wanted.shape[1:], strict=False)
    labels = wanted.shape == (-1,) and found.shape[1:] in ((), (1,), (-1,))
    if not labels and (len(found.shape) != len(wanted.shape) or any(side not in (-1, right) for side, right in sides)):
        raise ConfigurationError(f"upstream {what} {found.name!r} must have shape {list(wanted.shape)}, got {list(found.shape)}.")
