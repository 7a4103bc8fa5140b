"""What the command line names: a victim, a data set, an input contract. Shared by the verbs that need them."""

import importlib
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sameguard.cli.remote import RemoteOptions, check_local, is_url, open_victim
from sameguard.contract import InputContract
from sameguard.data import DataSet, Split, load, names, split
from sameguard.data.folders import read_arrays, read_image_folder
from sameguard.errors import ConfigurationError, DataNotFoundError, InvalidVictimError
from sameguard.victim import BlackBox, from_onnx, from_predictor

HELD_OUT_SEED = 0

VictimOption = Annotated[
    str,
    typer.Option(
        "--victim", metavar="SPEC", help="model.onnx, package.module:object (torch, scikit-learn, function), or http://host:port."
    ),
]
DataOption = Annotated[
    str, typer.Option("--data", metavar="NAME|PATH", help="A data set's name, an .npz of arrays, or a folder of images.")
]
SizeOption = Annotated[int | None, typer.Option("--size", help="Resize a folder's images to SIZE x SIZE pixels.")]
RootOption = Annotated[Path, typer.Option("--data-root", envvar="SAMEGUARD_DATA", help="Folder below which named data sets lie.")]
BenignOption = Annotated[str | None, typer.Option("--benign", metavar="NAME|PATH", help="Held-out benign queries that nobody trained on.")]
HeldOutOption = Annotated[float, typer.Option("--held-out", help="Share of --data, by digest, that the victim did NOT train on: benign.")]
OutputOption = Annotated[
    str | None, typer.Option("--output", help="probs, logits or labels; default logits for ONNX and torch, probs over HTTP.")
]
ClassesOption = Annotated[int | None, typer.Option("--classes", help="Number of classes, where the victim does not tell.")]
LayoutOption = Annotated[str | None, typer.Option("--layout", help="How clients send images: NCHW, NHWC or flat.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="FP32 or UINT8.")]
MeanOption = Annotated[str | None, typer.Option("--mean", help="Comma-separated, where clients send (x - mean) / std.")]
StdOption = Annotated[str | None, typer.Option("--std", help="Comma-separated, with --mean.")]


def load_data(spec: str, root: Path, size: int | None = None) -> DataSet:
    """A named data set, an .npz file or a folder of images (all of which count as training data)."""
    is_folder = spec not in names() and Path(spec).is_dir()
    if size is not None and not is_folder:
        raise ConfigurationError(f"--size resizes a folder of images, got data {spec!r}: leave it out.")
    if spec in names():
        return load(spec, root)
    if is_folder:
        return DataSet(Path(spec).name, read_image_folder(spec, size=size).split, None)
    if Path(spec).suffix == ".npz":
        return read_arrays(spec)
    raise DataNotFoundError(
        f"data {spec!r} must be a known name ({', '.join(names())}), an .npz file or a folder of images, got none of these."
    )


def load_split(spec: str, root: Path, part: str = "train", size: int | None = None) -> Split:
    """One part of the data that a SPEC names; where they have one part only, that one."""
    found = load_data(spec, root, size)
    chosen = getattr(found, part)
    other = found.test if part == "train" else found.train
    if chosen is None and other is None:
        raise DataNotFoundError(f"data {spec!r} hold no inputs.")
    return chosen if chosen is not None else other


def train_and_benign(
    data: str, root: Path, held_out: float, benign: str | None, size: int | None = None
) -> tuple[Split, np.ndarray | None]:
    """Training rows and held-out benign queries (canonical), as --data, --held-out and --benign say."""
    if not 0.0 <= held_out < 1.0:
        raise ConfigurationError(f"--held-out must be in [0, 1), got {held_out}.")
    if held_out and benign:
        raise ConfigurationError("--held-out and --benign both name the benign queries: give one of them.")
    train = load_split(data, root, size=size)
    if benign:
        return train, load_split(benign, root, "test", size if Path(benign).is_dir() else None).inputs
    if held_out:
        train, rest = split(train, (1.0 - held_out, held_out), seed=HELD_OUT_SEED)
        return train, rest.inputs
    return train, None


def contract_from(shape: tuple[int, ...], layout: str | None, dtype: str | None, mean: str | None, std: str | None) -> InputContract:
    """The contract of inputs of this canonical shape with what the flags say."""
    if len(shape) == 1:
        if layout not in (None, "flat") or dtype not in (None, "FP32") or mean or std:
            raise ConfigurationError(
                f"vectors of {shape[0]} features are sent flat, as FP32, as they are: leave --layout, --dtype, --mean and --std out."
            )
        return InputContract.vectors(shape[0])
    for option, text in (("--mean", mean), ("--std", std)):
        numbers = _numbers(text, option)
        if numbers is not None and len(numbers) not in (1, shape[0]):
            raise ConfigurationError(f"{option} must be one number or one for each of {shape[0]} channels, got {len(numbers)}: {text}.")
    return InputContract.images(
        *shape, layout=layout or "NCHW", dtype=dtype or "FP32", mean=_numbers(mean, "--mean"), std=_numbers(std, "--std")
    )


def load_victim(spec: str, inputs_shape: tuple[int, ...], *, output: str | None, classes: int | None, layout: str | None = None,
                dtype: str | None = None, mean: str | None = None, std: str | None = None, contract: InputContract | None = None,
                remote: RemoteOptions | None = None) -> BlackBox:  # fmt: skip
    """The victim that a SPEC names, under a contract for inputs of this canonical shape (or the contract given, an artefact's).

    remote: how to ask one over HTTP.
    """
    remote = remote or RemoteOptions()
    if is_url(spec):
        made = contract or contract_from(inputs_shape, layout, dtype, mean, std)
        return open_victim(spec, made, remote, output=output, classes=classes, adopt=contract is None)
    check_local(spec, remote)
    if spec.endswith(".onnx"):
        _check_there(spec)
        if contract is None:
            contract = contract_from(inputs_shape, layout or _onnx_layout(spec, inputs_shape), dtype or _onnx_dtype(spec), mean, std)
        return from_onnx(spec, contract, output=output or "logits", classes=classes)
    artefact = contract is not None
    contract = contract or contract_from(inputs_shape, layout, dtype, mean, std)
    if not all(spec.partition(":")):
        raise ConfigurationError(f"--victim must be model.onnx, package.module:object or http://host:port, got {spec!r}.")
    found = import_object(spec)
    if isinstance(found, BlackBox):
        return _unchanged(found, spec, contract, given=artefact or bool(layout or dtype or mean or std), output=output, classes=classes)
    if _is_torch_module(found):
        from sameguard.networks.torch_victim import TorchVictim

        return TorchVictim(found, contract, classes=classes or _count_classes(found, contract, spec), output=output or "logits", name=spec)
    if hasattr(found, "predict"):
        made = from_predictor(found, contract, output=output or ("probs" if hasattr(found, "predict_proba") else "labels"))
        if classes not in (None, made.classes):
            raise ConfigurationError(f"--classes must be what victim {spec} was fitted on, {made.classes}, got {classes}: leave it out.")
        return made
    if callable(found):
        if classes is None:
            raise ConfigurationError(f"victim {spec} is a function and does not tell its number of classes: give --classes.")
        return BlackBox(found, contract, classes=classes, output=output or "probs", name=spec)
    raise InvalidVictimError(f"victim {spec} must be a torch module, a classifier, a function or a BlackBox, got {type(found).__name__}.")


def same_output(manifest: dict[str, Any], output: str | None) -> str:
    """What the artefact's victim returns. Raises ConfigurationError where --output says otherwise: the deviations would mean another thing."""
    stored = manifest["victim"]["output"]
    if output not in (None, stored):
        raise ConfigurationError(
            f"--output must be {stored}, what the artefact was fitted for, got {output}: leave it out, or fit again on that victim."
        )
    return stored


def _unchanged(found: BlackBox, spec: str, contract: InputContract, *, given: bool, output: str | None, classes: int | None) -> BlackBox:
    """A BlackBox that says everything itself: flags and data may repeat what it says, not contradict it."""
    if found.contract.shape != contract.shape:
        raise InvalidVictimError(
            f"victim {spec} takes {found.contract.shape}, the data have shape {contract.shape}: one of them is the wrong one."
        )
    if given and found.contract != contract:
        raise ConfigurationError(f"victim {spec} declares {found.contract}, got {contract} from flags or artefact: make them agree.")
    for option, wanted, own in (("--output", output, found.output), ("--classes", classes, found.classes)):
        if wanted not in (None, own):
            raise ConfigurationError(f"victim {spec} declares {own}, got {option} {wanted}: leave the option out or change the victim.")
    return found


def import_object(spec: str, what: str = "victim") -> Any:
    """The object that package.module:object names. what: for the sentence, where that fails: InvalidVictimError, or ConfigurationError."""
    module_name, _, attribute = spec.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as error:  # whatever the user's own module raises
        raise (InvalidVictimError if what == "victim" else ConfigurationError)(
            f"{what} {spec} could not be imported: {type(error).__name__}: {error}. It is looked for on the Python path and in {Path.cwd()}."
        ) from error
    return found


def _is_torch_module(found: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever made a torch module has imported torch
    return torch is not None and isinstance(found, torch.nn.Module)


def _count_classes(module: Any, contract: InputContract, spec: str) -> int:
    import torch

    module.eval()
    try:
        with torch.no_grad():
            found = module(torch.from_numpy(contract.encode(np.zeros((1, *contract.shape), np.float32))))
    except Exception as error:  # whatever the user's own module raises
        raise InvalidVictimError(
            f"victim {spec} must take a batch of shape (1, {', '.join(map(str, contract.raw_shape))}), got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        got = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise InvalidVictimError(
            f"victim {spec} must return one tensor (batch, classes), got {got} for one query: wrap it in a module that returns its logits, or "
            "give --classes and --output labels if it names classes."
        )
    return int(found.shape[1])


def _check_there(spec: str) -> None:
    if not Path(spec).exists():
        raise InvalidVictimError(f"victim file {spec} must exist, got none at {Path(spec).absolute()}.")


def _onnx_layout(spec: str, shape: tuple[int, ...]) -> str | None:
    """The layout in which a graph takes images of this shape, where its input says so."""
    sides = _onnx_input(spec)[0]
    if len(shape) == 3 and sides == (math.prod(shape),):
        return "flat"
    if len(shape) == 3 and sides == (*shape[1:], shape[0]) and sides != shape:
        return "NHWC"
    return None


def _onnx_dtype(spec: str) -> str | None:
    return "UINT8" if _onnx_input(spec)[1] == "tensor(uint8)" else None


def _onnx_input(spec: str) -> tuple[tuple[Any, ...], str]:
    import onnxruntime

    try:
        graph_input = onnxruntime.InferenceSession(spec, providers=["CPUExecutionProvider"]).get_inputs()[0]
    except Exception as error:
        raise InvalidVictimError(f"victim file {spec} must be a readable ONNX graph, got {type(error).__name__}: {error}") from error
    return tuple(graph_input.shape[1:]), graph_input.type


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigurationError(f"{option} must be comma-separated numbers, got {text!r}.") from error
