"""Hugging Face checkpoints in and out: one name table, used in both directions.

The tensors of a checkpoint are views of its files until the shard of a parameter is filled from them, so that
loading holds about one stacked shard in host memory and saving about one file.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vpjax import files as storage
from vpjax.models.config import VLMConfig
from vpjax.models.names import FAMILIES
from vpjax.models.sharding import shardings
from vpjax.models.vlm import VideoLM, abstract_model, leaves, rebuild
from vpjax.types import Array, UserError

# What a folder holds beside config.json and weights, carried along as it is.
HF_FILES = "generation_config.json *token* vocab.* merges.txt chat_template* *processor_config.json".split()
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
PathLike = str | os.PathLike
DTYPES = {"F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}


class Tensor(NamedTuple):
    """A tensor of a safetensors file: its key, type and shape as they stand there, a view of its bytes."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    def array(self) -> np.ndarray:
        return self.data.view(DTYPES[self.dtype]).reshape(self.shape)


class Place(NamedTuple):
    """Where a tensor lives in our model. layer: index on the parameter's leading axis, None if not stacked.
    shape: of the tensor in a checkpoint."""

    path: str
    layer: int | None
    shape: tuple[int, ...]


def read_config(folder: PathLike) -> VLMConfig:
    """The configuration in ``folder``/config.json. UserError where there is none that we can run."""
    path = Path(folder) / "config.json"
    raw = _read_json(path)
    try:
        return VLMConfig.from_hf(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load_pretrained(folder: PathLike, *, mesh: jax.sharding.Mesh | None = None, dtype: Any = None) -> VideoLM:
    """Read a checkpoint folder of ``transformers``: ``config.json`` and safetensors, one file or an index.

    mesh: every device is given its shard (``sharding.shardings``); default: all on the default device.
    dtype: of all parameters; default: as in the files, for layers of a stack that differ the smallest type
    that holds them all exactly. UserError, in one line, for a folder that does not hold this model whole.
    """
    config = read_config(folder)
    model = abstract_model(config)
    layout = None if mesh is None else shardings(leaves(model), mesh)
    sources = defaultdict(list)
    for tensor, place in _match(_read_tensors(Path(folder)), model, folder):
        sources[place.path].append((tensor, place))

    params = {}
    for path, leaf in leaves(model).items():
        kind = dtype or _promoted(DTYPES[tensor.dtype] for tensor, _ in sources[path])
        read = functools.partial(_shard, sources[path], leaf.shape, kind)
        if layout is None:
            params[path] = jax.device_put(read((slice(None),) * leaf.ndim))
        else:
            params[path] = jax.make_array_from_callback(leaf.shape, layout[path], read)
    return rebuild(model, params)


def save_pretrained(model: VideoLM, folder: PathLike, *, like: PathLike | None = None) -> None:
    """Write a checkpoint folder that ``transformers`` loads; the inverse of ``load_pretrained``.

    like: a folder of the same architecture, such as the one that the model came from. Its tokenizer, chat
    template, generation and processor files are carried along, and where it holds weights, the key, file and
    type of every tensor are as there. Default: types as held, files of at most ``SHARD_BYTES``.
    All arrays must be addressable from this process. A file appears whole or not at all, config.json last.
    """
    folder, params, config = Path(folder), leaves(model), model.config.to_hf()
    carried = [] if like is None else [file for pattern in HF_FILES for file in Path(like).glob(pattern)]
    if like is not None and _weight_files(Path(like)):
        files = defaultdict(dict)  # file -> key -> (place, dtype)
        for tensor, place in _match(_read_tensors(Path(like)), model, like):
            files[tensor.file][tensor.key] = place, DTYPES[tensor.dtype]
    else:
        files = _plan(model)
        _set_dtype(config, _promoted(leaf.dtype for leaf in params.values()))

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    size = 0
    for file, members in files.items():
        size += _write_tensors(folder / file, params, members)
    for source in carried:
        if source.resolve() != (folder / source.name).resolve():
            _write(folder / source.name, functools.partial(shutil.copyfile, source))
    # Weights that an earlier save left here would be read beside these, or instead of them.
    for stale in folder.glob("model*.safetensors*"):
        if stale.name not in files:
            stale.unlink()
    if WEIGHTS not in files:
        weight_map = {key: file for file, members in files.items() for key in members}
        _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    _write_json(folder / "config.json", config)


def _places(model: VideoLM) -> dict[str, Place]:
    """The tensors of a checkpoint, by the names that we write; a stack's layers in their order."""
    params, places = leaves(model), {}
    for theirs, ours in FAMILIES[model.config.family].names:
        if ours not in params:  # a tied model's lm_head
            continue
        stacked, shape = "{i}" in theirs, params[ours].shape
        their_shape = _their_shape(model.config, ours, shape[stacked:])
        for i in range(shape[0]) if stacked else (None,):
            places[theirs.format(i=i)] = Place(ours, i, their_shape)
    return places


def _their_shape(config: VLMConfig, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a checkpoint of one layer of our parameter."""
    vision = config.vision
    if path == "vision.patch_embed.kernel":
        return shape[1], vision.channels, vision.temporal, vision.patch, vision.patch
    if path.endswith(".kernel"):
        return math.prod(shape[1:]), shape[0]
    return (math.prod(shape),) if path.endswith(".bias") else shape


def _turn(path: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """torch's kernel (out, in...) as ours (in, out...) of ``shape``, or back: its own inverse. All others are
    only reshaped. A view."""
    return (x.reshape(len(x), -1).T if path.endswith(".kernel") else x).reshape(shape)


def _shard(sources: list[tuple[Tensor, Place]], shape: tuple, dtype: Any, index: tuple) -> np.ndarray:
    """The part ``index`` of a parameter of ``shape``, filled from the files: the only copy on the host."""
    stacked = sources[0][1].layer is not None
    if not stacked:
        sources, shape, index = sources[:1], (1, *shape), (slice(None), *index)
    shard = np.empty([len(range(*cut.indices(size))) for cut, size in zip(index, shape, strict=True)], dtype)
    for row, (tensor, place) in zip(shard, sources[index[0]], strict=True):
        _copy(row, _turn(place.path, tensor.array(), shape[1:])[index[1:]])
    return shard if stacked else shard[0]


def _tensor(params: dict[str, Array], place: Place, dtype: Any) -> np.ndarray:
    """The tensor of a checkpoint at ``place``."""
    x = params[place.path] if place.layer is None else params[place.path][place.layer]
    tensor = np.empty(place.shape, dtype)
    _copy(tensor, _turn(place.path, np.asarray(x), place.shape))
    return tensor


def _copy(to: np.ndarray, view: np.ndarray) -> None:
    """Fill ``to``; from a transposed view in strips, which keep both sides in the cache: 3 times faster."""
    strip = to.shape[-1] if view.flags.c_contiguous else 64
    for at in range(0, to.shape[-1], strip):
        to[..., at : at + strip] = view[..., at : at + strip]


def _promoted(dtypes: Iterable[Any]) -> Any:
    """The smallest type that holds numbers of all these types exactly."""
    return functools.reduce(jnp.promote_types, dtypes)


def _match(tensors: list[Tensor], model: VideoLM, folder: PathLike) -> list[tuple[Tensor, Place]]:
    """Every tensor of ``folder`` with its place, in the order of the name table. All that does not fit goes
    into one UserError."""
    family, config = FAMILIES[model.config.family], model.config
    places, found = _places(model), defaultdict(list)
    for tensor in tensors:
        found[_written(tensor.key, family.spellings)].append(tensor)
    ours = {path: name for name, path in family.names}
    embed, head = ours["decoder.embed"], ours["decoder.lm_head"]
    if config.decoder.tied and head in found:  # allowed, as an equal copy
        places[head] = places[embed]

    faults = defaultdict(list)
    if missing := [name for name in places if name not in found]:
        faults["missing"] = missing
    for name, same in found.items():
        tensor, shape = same[0], places[name].shape if name in places else None
        if shape is None:
            faults["unexpected"] += [tensor.key for tensor in same]
        elif len(same) > 1:
            faults["there more than once"].append(name)
        elif tensor.dtype not in DTYPES:
            faults[f"of a type {tensor.dtype} that is none of {', '.join(DTYPES)}"].append(tensor.key)
        elif tensor.shape != shape:
            faults[f"of shape {tensor.shape} where config.json asks for {shape}"].append(tensor.key)
    if not faults and head in places and config.decoder.tied and not _equal(found[head][0], found[embed][0]):
        faults[f"unequal to {embed}, though config.json ties them"].append(head)
    if faults:
        lines = [f"{what}: {', '.join(_folded(names))}" for what, names in faults.items()]
        raise UserError(f"{folder}: weights do not fit config.json: {'; '.join(lines)}")
    return [(found[name][0], place) for name, place in places.items()]


def _written(key: str, spellings: dict[str, str]) -> str:
    """``key`` in the spelling that we write."""
    for read, written in spellings.items():
        if key.startswith(read):
            return written + key.removeprefix(read)
    return key


def _folded(names: Iterable[str]) -> list[str]:
    """Names that differ in their layer only, as one: ``model.layers.{0,1,2}.mlp.up_proj.weight``."""
    layers = defaultdict(list)
    for name in names:
        before, layer, after = re.fullmatch(r"(.*?)(?:\.(\d+)(\..*))?", name).groups()
        layers[before, after].append(layer)
    return [
        f"{before}.{{{','.join(sorted(at, key=int))}}}{after}" if after else before
        for (before, after), at in layers.items()
    ]


def _equal(a: Tensor, b: Tensor, rows: int = 4096) -> bool:
    """Whether two tensors hold the same numbers; some rows at a time, for they are large."""
    x, y = a.array(), b.array()
    return all(np.array_equal(x[i : i + rows], y[i : i + rows]) for i in range(0, len(x), rows))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, as ``transformers`` would choose them; none: []."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        return []
    index = _read_json(folder / INDEX)
    if "weight_map" not in index:
        raise UserError(f"{folder / INDEX}: has no weight_map; download it again")
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _read_tensors(folder: Path) -> list[Tensor]:
    """The tensors of a checkpoint folder; nothing but the headers is read."""
    files = _weight_files(folder)
    if not files:
        raise UserError(f"{folder}: no {WEIGHTS} and no {INDEX}; give the folder of a downloaded checkpoint")
    return [tensor for file in files for tensor in _read_header(file)]


def _read_header(file: Path) -> list[Tensor]:
    try:
        with safe_open(file, "numpy"):  # checks the header and that the file is as long as it says
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); download it again") from error
    # safe_open would copy a whole tensor to give us a part of its transpose; a view of the file does not.
    data = np.memmap(file, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    return [
        Tensor(file.name, key, x["dtype"], tuple(x["shape"]), data[start:][slice(*x["data_offsets"])])
        for key, x in header.items()
    ]


def _plan(model: VideoLM) -> dict[str, dict[str, tuple[Place, Any]]]:
    """Where to write the tensors of a model that follows no other folder: file -> key -> (place, dtype)."""
    params, shards, size = leaves(model), [{}], 0
    for name, place in _places(model).items():
        dtype = params[place.path].dtype
        size += math.prod(place.shape) * dtype.itemsize
        if shards[-1] and size > SHARD_BYTES:
            shards.append({})
            size = math.prod(place.shape) * dtype.itemsize
        shards[-1][name] = place, dtype
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _set_dtype(config: dict[str, Any], dtype: Any) -> None:
    """Make a ``config.json``, either spelling, name the type that the weights are written in."""
    config.pop("torch_dtype", None)
    config["dtype"] = jnp.dtype(dtype).name
    for part in config.values():
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = config["dtype"]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the folder of a downloaded checkpoint") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; download it again")
    return value


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    _write(path, lambda part: part.write_text(text))


def _write_tensors(path: Path, params: dict[str, Array], members: dict[str, tuple[Place, Any]]) -> int:
    """One file of weights; the bytes in its tensors."""
    tensors = {key: _tensor(params, *member) for key, member in members.items()}
    _write(path, functools.partial(save_file, tensors, metadata={"format": "pt"}))
    return sum(x.nbytes for x in tensors.values())


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """``write`` a file that appears under its name only when it is whole."""
    try:
        with storage.written(path) as part:
            write(part)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
