"""Quantised safetensors tensors: found by their names, dequantised by the packages that define them.

A quantised matrix is stored as several tensors: codes, scales, zero points. They become one tensor, which is
read as the float32 values that the codes represent. If no installed package can do that, each part is kept
as it is and marked as a stored form.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np

from asysi.weights.reading.dtypes import is_float, spacing
from asysi.weights.reading.storage import Bytes
from asysi.weights.reading.tensors import DEQUANTISED, STORED_FORM, Array, Coding, Tensor

Config = Mapping[str, Any]
Parts = Mapping[str, Tensor]
"""Stored tensors by the last part of their names."""
_BNB4 = ".quant_state.bitsandbytes__"
_PACKED_PARTS = (
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_global_scale",
    "weight_g_idx",
)
_INTEGER_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_INSTALL = "pip install 'asysi[dequantize]'"


@dataclass(frozen=True, slots=True)
class Group:
    """The stored tensors of one quantised weight."""

    name: str
    """Name of the weight."""
    scheme: str
    """bitsandbytes-4bit | bitsandbytes-8bit | integer | packed | scaled | mxfp4."""
    parts: Parts


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a group is dequantised."""

    package: str
    stored: str
    """Type that the row reports."""
    shape: tuple[int, ...]
    values: Callable[[], Any]
    """Returns a torch tensor of `shape`."""
    noise: Callable[[Array], float | None] = lambda _values: None


class DequantisationError(Exception):
    """The group cannot be dequantised; the message gives the reason."""


def dequantised(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Return the tensors with every quantised group as one tensor, or its parts marked as a stored form.

    Args:
        tensors: as stored in the files.
        config: `quantization_config` of the model, empty if there is none.
    """
    groups = {part.name: group for group in find_groups(tensors) for part in group.parts.values()}
    found: dict[str, Tensor] = {}
    done: set[str] = set()
    for name, tensor in tensors.items():
        group = groups.get(name)
        if group is None:
            found[name] = _marked(tensor, _why_unknown(config)) if _looks_coded(tensor, config) else tensor
        elif group.name not in done:
            done.add(group.name)
            for one in _resolved(group, config):
                found[one.name] = one
    return found


def find_groups(tensors: Mapping[str, Tensor]) -> list[Group]:
    """Return the quantised weights, recognised by the names and types of the stored tensors."""
    groups: list[Group] = []
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        if _BNB4 in name:
            weight = name.partition(_BNB4)[0]
            parts = {
                one.removeprefix(f"{weight}."): tensors[one]
                for one in tensors
                if one.startswith(f"{weight}.")
            }
            groups += _group(weight, "bitsandbytes-4bit", {**parts, "weight": tensors.get(weight)})
        elif last == "SCB":
            groups += _group(
                f"{stem}.weight",
                "bitsandbytes-8bit",
                _gather(tensors, stem, ("weight", "SCB", "weight_format")),
            )
        elif last == "qweight":
            groups += _group(f"{stem}.weight", "integer", _gather(tensors, stem, _INTEGER_PARTS))
        elif last == "weight_packed":
            groups += _group(f"{stem}.weight", "packed", _gather(tensors, stem, _PACKED_PARTS))
        elif name.endswith("_blocks") and (scales := tensors.get(f"{name.removesuffix('_blocks')}_scales")):
            groups += _group(name.removesuffix("_blocks"), "mxfp4", {"blocks": tensor, "scales": scales})
        elif (
            (suffix := _scale_suffix(name))
            and (codes := tensors.get(name.removesuffix(suffix)))
            and _is_coded(codes)
        ):
            zero = tensors.get(f"{codes.name}_zero_point")
            groups += _group(codes.name, "scaled", {"weight": codes, "scale": tensor, "zero_point": zero})
    return groups


def _group(name: str, scheme: str, parts: Mapping[str, Tensor | None]) -> list[Group]:
    there = {key: one for key, one in parts.items() if one is not None}
    return [Group(name, scheme, there)] if len(there) > 1 else []


def _gather(tensors: Mapping[str, Tensor], stem: str, names: Sequence[str]) -> dict[str, Tensor | None]:
    return {name: tensors.get(f"{stem}.{name}") for name in names}


def _scale_suffix(name: str) -> str | None:
    return next((one for one in ("_scale_inv", "_scale") if name.endswith(one)), None)


def _is_coded(tensor: Tensor) -> bool:
    """Return whether its elements have a type that takes a scale: 8 bits or fewer, and not boolean."""
    return tensor.dtype.itemsize == 1 and tensor.dtype.kind != "b" and len(tensor.shape) >= 2


def _looks_coded(tensor: Tensor, config: Config) -> bool:
    """Return whether a single tensor must be codes: integers named as a weight, or any integer matrix if a
    quantisation is declared."""
    if (
        tensor.coding is not None
        or is_float(tensor.dtype)
        or tensor.dtype.kind in "bc"
        or len(tensor.shape) < 2
    ):
        return False
    return tensor.name.endswith(("weight", "weight_packed", "qweight", "_blocks")) or bool(config)


def _why_unknown(config: Config) -> str:
    method = config.get("quant_method")
    return (
        f"quantised by {method}, which nothing here undoes"
        if method
        else "integers under the name of a weight"
    )


def _marked(tensor: Tensor, why: str) -> Tensor:
    coding = tensor.coding or Coding(str(tensor.dtype), tensor.nbytes)
    return replace(tensor, coding=replace(coding, form=STORED_FORM), note=f"{STORED_FORM}: {why}")


def _resolved(group: Group, config: Config) -> list[Tensor]:
    try:
        recipe = _RECIPES[group.scheme](group, config)
        _require(recipe.package)
    except Exception as error:  # noqa: BLE001 - the packages raise what they like; the parts stay readable
        why = f"part of {group.name}; {error or type(error).__name__}"
        return [_marked(one, why) for one in group.parts.values()]
    return [_tensor(group, recipe)]


def _require(package: str) -> None:
    if find_spec(package) is None or find_spec("torch") is None:
        raise DequantisationError(f"it needs the package {package.replace('_', '-')}: {_INSTALL}")


def _tensor(group: Group, recipe: Recipe) -> Tensor:
    stored = list(group.parts.values())

    def read(start: int, stop: int, _into: Bytes | None) -> Array:
        import torch  # noqa: PLC0415 - heavy

        with torch.inference_mode():
            values: Array = recipe.values().to(torch.float32).contiguous().numpy().reshape(-1)
        if values.size != math.prod(recipe.shape):
            raise ValueError(
                f"{recipe.package} made {values.size} elements of it, {recipe.shape} was expected"
            )
        return values[start:stop]

    def parts() -> Iterator[Array]:
        for one in stored:
            yield one.read()

    coding = Coding(
        recipe.stored, sum(one.stored_bytes for one in stored), DEQUANTISED,
        f"{recipe.package} {_version(recipe.package)}", parts, recipe.noise,
    )  # fmt: skip
    names = ", ".join(one.name.rpartition(".")[2] for one in stored)
    main = stored[0]
    return Tensor(
        group.name,
        np.dtype("<f4"),
        recipe.shape,
        main.file,
        main.framework,
        read,
        False,
        coding,
        f"made of {names}",
    )


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _torch(tensor: Tensor) -> Any:
    """Return the tensor as a torch tensor, including 8-bit types and bfloat16."""
    import torch  # noqa: PLC0415 - heavy

    array = np.ascontiguousarray(tensor.array())
    array = array if array.flags.writeable else array.copy()
    if array.dtype.kind == "V" or "float8" in str(array.dtype):
        raw = torch.from_numpy(array.view(np.uint8 if array.itemsize == 1 else np.int16))
        return raw.view(getattr(torch, str(array.dtype)))
    return torch.from_numpy(array)


# -- scaled: codes × scales


def _scaled(group: Group, config: Config) -> Recipe:
    codes, scale = group.parts["weight"], group.parts["scale"]
    if "zero_point" in group.parts:
        return _compressed(
            group,
            config,
            {
                "weight_scale": scale,
                **{f"weight_{k}" if k != "weight" else k: v for k, v in group.parts.items() if k != "scale"},
            },
        )
    if codes.coding is not None or str(scale.dtype) in {"uint8", "float8_e8m0fnu"}:
        raise DequantisationError(f"{codes.stored} with scales of {scale.stored} is not known")
    rows, cols = codes.shape[-2:]
    grid = _grid(codes.shape, scale.shape)
    declared = config.get("weight_block_size")
    block = (math.ceil(rows / grid[0]), math.ceil(cols / grid[1]))
    if declared and grid not in {(1, 1), (rows, 1)}:
        block = (int(declared[0]), int(declared[1]))
        if grid != (math.ceil(rows / block[0]), math.ceil(cols / block[1])):
            raise DequantisationError(f"scales {scale.shape} do not fit blocks of {block} in {codes.shape}")

    def times_scale(values: Any) -> Any:
        import torch  # noqa: PLC0415 - heavy
        from compressed_tensors.entrypoints.convert import FP8BlockDequantizer  # noqa: PLC0415

        tool = FP8BlockDequantizer(weight_block_size=block, dtype=torch.float32)
        scales = _torch(scale).to(torch.float32).reshape(-1, *grid)
        pages = [
            tool.process({"x.weight": page, "x.weight_scale_inv": one})["x.weight"]
            for page, one in zip(
                values.reshape(-1, rows, cols),
                scales.expand(math.prod(codes.shape[:-2]), -1, -1),
                strict=True,
            )
        ]
        return torch.stack(pages)

    def noise(_values: Array) -> float:
        import torch  # noqa: PLC0415 - heavy

        stored = codes.array()
        step = (
            spacing(stored.astype(np.float64), stored.dtype)
            if is_float(stored.dtype)
            else np.ones(stored.shape)
        )
        with torch.inference_mode():
            return float(torch.sqrt(times_scale(torch.from_numpy(step)).double().square().mean() / 12))

    return Recipe(
        "compressed_tensors",
        f"{codes.stored} × scale",
        codes.shape,
        lambda: times_scale(_torch(codes)),
        noise,
    )


def _grid(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of row blocks and column blocks that the scales cover.

    Raises:
        DequantisationError: the scales' shape fits none of the known layouts.
    """
    pages, rows, cols = math.prod(shape[:-2]), shape[-2], shape[-1]
    if math.prod(scale) in {1, pages}:
        return 1, 1
    if math.prod(scale) in {rows, pages * rows} and scale[-1] in {1, rows}:
        return rows, 1
    if len(scale) == len(shape) and scale[:-2] == shape[:-2] and scale[-2] <= rows and scale[-1] <= cols:
        return scale[-2], scale[-1]
    raise DequantisationError(f"scales of shape {scale} do not fit a weight of {shape}")


# -- compressed-tensors


def _packed(group: Group, config: Config) -> Recipe:
    return _compressed(group, config, group.parts)


def _compressed(group: Group, config: Config, parts: Parts) -> Recipe:
    if config.get("quant_method") != "compressed-tensors":
        raise DequantisationError(
            "config.json does not say how: quantization_config of compressed-tensors is missing"
        )
    _require("compressed_tensors")
    scheme = _scheme(group.name.rpartition(".")[0], json.dumps(dict(config), sort_keys=True))
    shape = tuple(int(one) for one in parts["weight_shape"].array()) if "weight_shape" in parts else None
    if shape is None:
        codes = parts.get("weight") or parts["weight_packed"]
        shape = (
            codes.shape if "weight" in parts else (*codes.shape[:-1], 2 * codes.shape[-1])
        )  # two FP4 per byte

    def values() -> Any:
        import torch  # noqa: PLC0415 - heavy
        from compressed_tensors.compressors import BaseCompressor  # noqa: PLC0415

        state = {name: _torch(one) for name, one in parts.items()}
        if state["weight_scale"].dtype in {torch.bfloat16, torch.float16}:
            state["weight_scale"] = state["weight_scale"].float()  # the result has the type of the scales
        return BaseCompressor.get_value_from_registry(scheme.format).decompress(state, scheme)["weight"]

    integers = scheme.weights.type == "int"
    noise = _step_noise(parts["weight_scale"]) if integers else (lambda _values: None)
    bits = f"{scheme.weights.type}{scheme.weights.num_bits}"
    return Recipe("compressed_tensors", f"{bits} compressed-tensors", shape, values, noise)


@cache
def _scheme(module: str, config: str) -> Any:
    import torch  # noqa: PLC0415 - heavy
    from compressed_tensors.compressors.format import infer_module_format  # noqa: PLC0415
    from compressed_tensors.config import CompressionFormat  # noqa: PLC0415
    from compressed_tensors.quantization import QuantizationConfig  # noqa: PLC0415
    from compressed_tensors.utils.match import match_name  # noqa: PLC0415

    schemes = list(QuantizationConfig.model_validate(json.loads(config)).config_groups.values())
    fitting = [one for one in schemes if any(match_name(module, target) for target in one.targets)]
    fitting = fitting or [one for one in schemes if "Linear" in one.targets] or schemes
    if len(fitting) != 1 or fitting[0].weights is None:
        raise DequantisationError(f"{len(fitting)} groups of quantization_config could be meant")
    scheme = fitting[0]
    scheme.format = CompressionFormat(infer_module_format(torch.nn.Linear, scheme))
    return scheme


def _step_noise(scales: Tensor) -> Callable[[Array], float]:
    """Return a function for the noise of integers × scales: each scale is a step, for equally many values."""

    def noise(_values: Array) -> float:
        return float(np.sqrt(np.square(scales.read().astype(np.float64)).mean() / 12))

    return noise


# -- GPTQ and AWQ


def _integer(group: Group, config: Config) -> Recipe:
    method, bits = config.get("quant_method"), int(config.get("bits") or config.get("w_bit") or 0)
    if method not in {"gptq", "awq"} or not bits:
        raise DequantisationError(
            "config.json does not say how: quantization_config of GPTQ or AWQ is missing"
        )
    if not {"qweight", "scales"} <= group.parts.keys():
        raise DequantisationError(f"of {', '.join(_INTEGER_PARTS)} only {', '.join(group.parts)} are there")
    codes, scales = group.parts["qweight"], group.parts["scales"]
    noise = _step_noise(scales)
    if method == "awq":
        if bits != 4 or str(config.get("version") or "gemm").lower() != "gemm":
            raise DequantisationError(
                f"AWQ of {bits} bits, version {config.get('version')}, is not known; 4 and gemm are"
            )
        shape = (codes.shape[1] * 32 // bits, codes.shape[0])
        return Recipe(
            "compressed_tensors", "int4 AWQ", shape, lambda: _awq(group.parts, config, shape), noise
        )
    if bits not in {2, 3, 4, 8} or codes.dtype != np.int32:
        raise DequantisationError(
            f"GPTQ of {bits} bits in {codes.dtype} is not known; 2, 3, 4, 8 in int32 are"
        )
    shape = (codes.shape[1], codes.shape[0] * 32 // bits)
    return Recipe(
        "compressed_tensors", f"int{bits} GPTQ", shape, lambda: _gptq(group.parts, config, bits, shape), noise
    )


def _awq(parts: Parts, config: Config, shape: tuple[int, int]) -> Any:
    from compressed_tensors.entrypoints.convert import AutoAWQConverter  # noqa: PLC0415

    state = {f"x.{name}": _torch(one) for name, one in parts.items()}
    size = shape[1] // parts["scales"].shape[0]
    tool = AutoAWQConverter(group_size=size, zero_point="qzeros" in parts, ignore=())
    packed = {name.removeprefix("x."): one for name, one in tool.process(state).items()}
    packed["weight_scale"] = packed["weight_scale"].float()
    return _unpacked(packed, 4, size, symmetric="qzeros" not in parts)


def _unpacked(state: dict[str, Any], bits: int, size: int, *, symmetric: bool) -> Any:
    from compressed_tensors.compressors import PackedQuantizationCompressor  # noqa: PLC0415
    from compressed_tensors.quantization import QuantizationScheme  # noqa: PLC0415

    scheme = QuantizationScheme(targets=["Linear"], weights=_arguments(bits, size, symmetric=symmetric))
    return PackedQuantizationCompressor.decompress(state, scheme)["weight"]


def _arguments(bits: int, size: int, *, symmetric: bool) -> Any:
    from compressed_tensors.quantization import QuantizationArgs  # noqa: PLC0415

    return QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, group_size=size, strategy="group")


def _gptq(parts: Parts, config: Config, bits: int, shape: tuple[int, int]) -> Any:
    """Return a GPTQ weight: codes are packed along the inputs, zero points along the outputs."""
    import torch  # noqa: PLC0415 - heavy
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32  # noqa: PLC0415
    from compressed_tensors.quantization.lifecycle.forward import dequantize  # noqa: PLC0415

    outputs, inputs = shape
    scales = _torch(parts["scales"]).float()
    groups = scales.shape[0]
    codes = unpack_from_int32(_torch(parts["qweight"]), bits, torch.Size((inputs, outputs)), packed_dim=0).T
    zeros = torch.zeros((groups, outputs), dtype=torch.int32)
    if "qzeros" in parts:
        zeros = unpack_from_int32(_torch(parts["qzeros"]), bits, torch.Size((groups, outputs))).int()
        if str(config.get("checkpoint_format") or "gptq") != "gptq_v2":
            half, levels = 1 << bits - 1, 1 << bits  # the first format stores each zero point minus one
            zeros = (zeros + half + 1) % levels - half
    # With activation ordering, inputs belong to groups in any order, so every group here has one input.
    of_input = (
        _torch(parts["g_idx"]).long() if "g_idx" in parts else torch.arange(inputs) // (inputs // groups)
    )
    arguments = _arguments(bits, 1, symmetric=False)
    return dequantize(codes, scales[of_input].T, zeros[of_input].T, arguments, dtype=torch.float32)


# -- bitsandbytes


def _bitsandbytes_4(group: Group, _config: Config) -> Recipe:
    name = next(one for one in group.parts if one.startswith(_BNB4.removeprefix(".")))
    said = json.loads(group.parts[name].read().tobytes())
    shape, block = tuple(int(one) for one in said["shape"]), int(said["blocksize"])

    def values() -> Any:
        import torch  # noqa: PLC0415 - heavy
        from bitsandbytes.functional import QuantState, dequantize_4bit  # noqa: PLC0415

        state = {one: _torch(tensor) for one, tensor in group.parts.items() if one != "weight"}
        state_ = QuantState.from_dict(state, device=torch.device("cpu"))
        state_.dtype = torch.float32
        return dequantize_4bit(_torch(group.parts["weight"]), state_)

    noise = _codebook_noise(group.parts["quant_map"], block)
    return Recipe("bitsandbytes", f"{said['quant_type']} bitsandbytes", shape, values, noise)


def _codebook_noise(levels: Tensor, block: int) -> Callable[[Array], float]:
    """Return a function for the noise of rounding to codebook levels, scaled by each block's maximum."""

    def noise(values: Array) -> float:
        book = np.unique(levels.read().astype(np.float64))
        widths = np.diff(np.concatenate([[book[0]], (book[1:] + book[:-1]) / 2, [book[-1]]]))
        widths[[0, -1]] *= 2
        blocks = np.resize(values.astype(np.float64), (math.ceil(values.size / block), block))
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        places = np.searchsorted((book[1:] + book[:-1]) / 2, blocks / np.where(largest > 0, largest, 1))
        return float(np.sqrt(np.square(widths[places] * largest).mean() / 12))

    return noise


def _bitsandbytes_8(group: Group, _config: Config) -> Recipe:
    codes, scales = group.parts["weight"], group.parts["SCB"]
    if codes.dtype != np.int8 or scales.size != codes.shape[0]:
        raise DequantisationError(f"{codes.dtype} {codes.shape} with SCB {scales.shape} is not known")
    if "weight_format" in group.parts and int(group.parts["weight_format"].read()[0]) != 0:
        raise DequantisationError("its rows are in a tiled order of a GPU, weight_format is not row")

    def values() -> Any:
        from bitsandbytes.functional import int8_vectorwise_dequant  # noqa: PLC0415

        return int8_vectorwise_dequant(_torch(codes), _torch(scales).float())

    def noise(_values: Array) -> float:
        return float(np.sqrt(np.square(scales.read().astype(np.float64) / 127).mean() / 12))

    return Recipe("bitsandbytes", "int8 bitsandbytes", codes.shape, values, noise)


# -- MXFP4


def _mxfp4(group: Group, _config: Config) -> Recipe:
    blocks, scales = group.parts["blocks"], group.parts["scales"]
    if blocks.dtype != np.uint8 or blocks.shape[:-1] != scales.shape or len(blocks.shape) != 4:
        raise DequantisationError(
            f"blocks {blocks.shape} and scales {scales.shape} of {blocks.dtype} are not known"
        )
    experts, outputs, count, size = blocks.shape

    def values() -> Any:
        import torch  # noqa: PLC0415 - heavy
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # noqa: PLC0415

        return convert_moe_packed_tensors(_torch(blocks), _torch(scales), dtype=torch.float32)

    return Recipe("transformers", "mxfp4", (experts, count * size * 2, outputs), values)


_RECIPES: dict[str, Callable[[Group, Config], Recipe]] = {
    "bitsandbytes-4bit": _bitsandbytes_4,
    "bitsandbytes-8bit": _bitsandbytes_8,
    "integer": _integer,
    "packed": _packed,
    "scaled": _scaled,
    "mxfp4": _mxfp4,
}
