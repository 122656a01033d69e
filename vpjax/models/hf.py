"""Reads and writes Hugging Face checkpoints by one name table, used in both directions.

The tensors of a checkpoint are views of its files until the shard of a parameter is filled from them, so that
loading holds about one stacked shard in host memory and saving about one file.
"""

import contextlib
import functools
import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vpjax.files import AnyPath, read_object, write_json, written
from vpjax.models.config import VLMConfig
from vpjax.models.names import FAMILIES
from vpjax.models.sharding import shardings
from vpjax.models.vision import VisionConfig
from vpjax.models.vlm import VideoLM, abstract_model, leaves, rebuild
from vpjax.types import UserError

# Files that are copied along with config.json and the weights.
HF_FILES = (
    "generation_config.json *token* vocab.* merges.txt chat_template* *processor_config.json LICENSE*".split()
)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
MATRICES = (".kernel", ".lora_a", ".lora_b")  # endings of paths of what torch stores transposed
Files = dict[str, dict[str, tuple["Place", Any]]]  # file -> key of a tensor -> its place and type
DTYPE_NAMES = ("dtype", "torch_dtype")  # of a field of config.json
TENSOR_DTYPES = {"F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}


class Tensor(NamedTuple):
    """A tensor of a safetensors file: its key, type and shape in the header, and a view of its bytes."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    def array(self) -> np.ndarray:
        return self.data.view(TENSOR_DTYPES[self.dtype]).reshape(self.shape)


class Place(NamedTuple):
    """The place of a checkpoint's tensor in our model. path: of the parameter. layer: index on its leading
    axis, None if it is not stacked. shape: of the tensor."""

    path: str
    layer: int | None
    shape: tuple[int, ...]


def read_config(folder: AnyPath) -> VLMConfig:
    """The configuration in ``folder``/config.json. UserError if it is missing or not supported."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    try:
        return VLMConfig.from_hf(raw)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def stored_dtype(folder: AnyPath) -> str | None:
    """The type of the weights that belong to ``folder``/config.json, such as bfloat16; None: it does not say.
    Files of transformers 5 call it ``dtype``, older ones ``torch_dtype``; Qwen3-VL's on the hub have it in
    ``text_config`` only."""
    raw = read_json(Path(folder) / "config.json")
    says = [section.get(name) for section in (raw, raw.get("text_config") or {}) for name in DTYPE_NAMES]
    return next((dtype for dtype in says if dtype), None)


def load_pretrained(folder: AnyPath, *, mesh: jax.sharding.Mesh | None = None, dtype: Any = None) -> VideoLM:
    """Read a checkpoint folder of ``transformers``: ``config.json`` and safetensors, one file or an index.

    mesh: every device receives its shard (``sharding.shardings``); default: all on the default device.
    dtype: of all parameters; default: as in the files, or for a stack of layers with several types, the
    smallest that holds them all exactly. UserError, in one line, if the folder does not hold the whole model.
    """
    return rebuild(abstract_model(read_config(folder)), dict(read_params(folder, mesh=mesh, dtype=dtype)))


def read_params(
    folder: AnyPath, *, mesh: jax.sharding.Mesh | None = None, dtype: Any = None
) -> Iterator[tuple[str, jax.Array]]:
    """The parameters by path, see ``load_pretrained``, each read when it is asked for."""
    model = abstract_model(read_config(folder))
    layout = None if mesh is None else shardings(leaves(model), mesh)
    sources = defaultdict(list)
    for tensor, place in match(_read_tensors(Path(folder)), places_of(model), model.config, folder):
        sources[place.path].append((tensor, place))

    for path, leaf in leaves(model).items():
        kind = dtype or _promoted(TENSOR_DTYPES[tensor.dtype] for tensor, _ in sources[path])
        read = functools.partial(read_shard, sources[path], leaf.shape, kind)
        if layout is None:
            yield path, jax.device_put(read((slice(None),) * leaf.ndim))
        else:
            yield path, jax.make_array_from_callback(leaf.shape, layout[path], read)


def save_pretrained(model: VideoLM, folder: AnyPath, *, like: AnyPath | None = None) -> None:
    """Write a checkpoint folder that ``transformers`` loads; the inverse of ``load_pretrained``.

    like: a folder of the same architecture, such as the one that the model came from. Its tokenizer, chat
    template, generation and processor files are copied, in place of all that ``folder`` has of these, and if
    it holds weights, every tensor keeps its key, file and type. Otherwise tensors have the types of the
    model, in files of at most ``SHARD_BYTES``. All arrays must be addressable from this process. A file
    appears whole or not at all, config.json last.
    """
    folder, params, config = Path(folder), leaves(model), model.config.to_hf()
    copied = [] if like is None else companions(like)
    if like is not None and _weight_files(Path(like)):
        files: Files = defaultdict(dict)
        for tensor, place in match(_read_tensors(Path(like)), places_of(model), model.config, like):
            files[tensor.file][tensor.key] = place, TENSOR_DTYPES[tensor.dtype]
    else:
        files = _plan_files(model)
        _set_dtype(config, _promoted(leaf.dtype for leaf in params.values()))

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    size = 0
    for file, members in files.items():
        size += write_tensors(folder / file, params, members)
    for source in copied:
        if source.resolve() != (folder / source.name).resolve():
            _write_file(folder / source.name, functools.partial(shutil.copyfile, source))
    # What an earlier save left would be read beside these files, or instead of them.
    kept = {*files, *(source.name for source in copied)}
    left = [*folder.glob("model*.safetensors*"), *(companions(folder) if like is not None else [])]
    for stale in left:
        if stale.name not in kept:
            stale.unlink()
    if WEIGHTS not in files:
        weight_map = {key: file for file, members in files.items() for key in members}
        write_json_file(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    write_json_file(folder / "config.json", config)


def companions(folder: AnyPath) -> list[Path]:
    """The files of a folder that belong to its model beside config.json and the weights: HF_FILES."""
    return [file for pattern in HF_FILES for file in sorted(Path(folder).glob(pattern)) if file.is_file()]


def places_of(model: VideoLM) -> dict[str, Place]:
    """The tensors of a checkpoint, by the names that we write; the layers of a stack in their order. Adapters
    among the parameters are under PEFT's names."""
    params, vision, places = leaves(model), model.config.vision, {}
    for theirs, ours in FAMILIES[model.config.family].names(params).items():
        shape = params[ours].shape
        if "{i}" in theirs:
            for i in range(shape[0]):
                places[theirs.format(i=i)] = Place(ours, i, _their_shape(vision, ours, shape[1:]))
        else:
            places[theirs] = Place(ours, None, _their_shape(vision, ours, shape))
    return places


def _their_shape(vision: VisionConfig, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a checkpoint of one layer of our parameter at ``path``, whose shape is ``shape``."""
    if path == "vision.patch_embed.kernel":
        return shape[1], vision.channels, vision.temporal, vision.patch, vision.patch
    if path.endswith(MATRICES):
        return math.prod(shape[1:]), shape[0]
    return (math.prod(shape),) if path.endswith(".bias") else shape


def _turn(path: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A view of ``x`` with ``shape``: a matrix of torch (out, in...) as ours (in, out...), or the inverse.
    Other parameters are only reshaped."""
    if path.endswith(MATRICES):
        x = x.reshape(len(x), -1).T
    return x.reshape(shape)


def read_shard(sources: list[tuple[Tensor, Place]], shape: tuple, dtype: Any, index: tuple) -> np.ndarray:
    """The part ``index`` of a parameter of ``shape``, filled from the files: the only copy on the host."""
    stacked = sources[0][1].layer is not None
    if not stacked:
        sources, shape, index = sources[:1], (1, *shape), (slice(None), *index)
    shard = np.empty([len(range(*cut.indices(size))) for cut, size in zip(index, shape, strict=True)], dtype)
    for layer, (tensor, place) in zip(shard, sources[index[0]], strict=True):
        _copy(layer, _turn(place.path, tensor.array(), shape[1:])[index[1:]])
    return shard if stacked else shard[0]


def _copy(to: np.ndarray, view: np.ndarray) -> None:
    """Fill ``to`` from a view. A transposed view is read in strips, for which both sides fit the processor's
    cache: 3 times faster."""
    strip = to.shape[-1] if view.flags.c_contiguous else 64
    for at in range(0, to.shape[-1], strip):
        to[..., at : at + strip] = view[..., at : at + strip]


def _promoted(dtypes: Iterable[Any]) -> Any:
    """The smallest type that holds the numbers of all ``dtypes`` exactly."""
    return functools.reduce(jnp.promote_types, dtypes)


def match(
    tensors: list[Tensor],
    places: dict[str, Place],
    model_config: VLMConfig,
    folder: AnyPath,
    asks: str = "config.json",
) -> list[tuple[Tensor, Place]]:
    """The tensors of ``folder``, each with its place, in the order of ``places``. One UserError lists
    everything that does not fit. asks: where it stands what ``places`` are."""
    family, tied = FAMILIES[model_config.family], model_config.decoder.tied
    places, found = dict(places), defaultdict(list)
    for tensor in tensors:
        found[_canonical(tensor.key, family.spellings)].append(tensor)
    embed, head = family.name_of("decoder.embed"), family.name_of("decoder.lm_head")
    if tied and head in found:  # allowed if it is an equal copy
        places[head] = places[embed]

    faults = defaultdict(list)
    missing = [name for name in places if name not in found]
    if missing:
        faults["missing"] = missing
    for name, same in found.items():
        tensor, shape = same[0], places[name].shape if name in places else None
        if shape is None:
            faults["unexpected"] += [tensor.key for tensor in same]
        elif len(same) > 1:
            faults["there more than once"].append(name)
        elif tensor.dtype not in TENSOR_DTYPES:
            faults[f"of a type {tensor.dtype} that is none of {', '.join(TENSOR_DTYPES)}"].append(tensor.key)
        elif tensor.shape != shape:
            faults[f"of shape {tensor.shape} where {asks} asks for {shape}"].append(tensor.key)
    if not faults and tied and head in places and not _equal(found[head][0], found[embed][0]):
        faults[f"unequal to {embed}, though config.json ties them"].append(head)
    if faults:
        lines = [f"{fault}: {', '.join(_folded(names))}" for fault, names in faults.items()]
        raise UserError(f"{folder}: weights do not fit {asks}: {'; '.join(lines)}")
    return [(found[name][0], place) for name, place in places.items()]


def _canonical(key: str, spellings: dict[str, str]) -> str:
    """``key`` in the spelling that we write."""
    for prefix, ours in spellings.items():
        if key.startswith(prefix):
            return ours + key.removeprefix(prefix)
    return key


def _folded(names: Iterable[str]) -> list[str]:
    """Names that differ only in their layer as one name: ``model.layers.{0,1,2}.mlp.up_proj.weight``."""
    layers: dict[str, list[int]] = defaultdict(list)
    for name in names:
        parts = re.split(r"\.(\d+)\.", name, maxsplit=1)
        if len(parts) == 1:
            layers[name] = []
        else:
            before, layer, after = parts
            layers[f"{before}.{{}}.{after}"].append(int(layer))
    return [name.replace("{}", f"{{{','.join(map(str, sorted(at)))}}}") for name, at in layers.items()]


def _equal(a: Tensor, b: Tensor, rows: int = 4096) -> bool:
    """Whether two tensors hold the same numbers. They are large, so ``rows`` rows at a time are compared."""
    x, y = a.array(), b.array()
    return all(np.array_equal(x[i : i + rows], y[i : i + rows]) for i in range(0, len(x), rows))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that ``transformers`` would read in a folder; [] if it has none."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        return []
    index = read_json(folder / INDEX)
    if "weight_map" not in index:
        raise UserError(f"{folder / INDEX}: has no weight_map; download it again")
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def _read_tensors(folder: Path) -> list[Tensor]:
    """The tensors of a checkpoint folder, of which only the headers are read."""
    files = _weight_files(folder)
    if not files:
        raise UserError(f"{folder}: no {WEIGHTS} and no {INDEX}; give the folder of a downloaded checkpoint")
    return [tensor for file in files for tensor in read_header(file)]


def read_header(file: Path) -> list[Tensor]:
    """The tensors of a safetensors file. UserError if it is damaged."""
    try:
        with safe_open(file, "numpy"):  # checks the header and the length of the file
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read ({error}); download it again") from error
    # safe_open would copy a whole tensor to read a part of its transpose. A view of the file does not.
    data = np.memmap(file, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    return [
        Tensor(file.name, key, x["dtype"], tuple(x["shape"]), data[start:][slice(*x["data_offsets"])])
        for key, x in header.items()
    ]


def _plan_files(model: VideoLM) -> Files:
    """The files of a model that is not written like another folder: at most ``SHARD_BYTES`` each."""
    params, size = leaves(model), 0
    shards: list[dict[str, tuple[Place, Any]]] = [{}]
    for name, place in places_of(model).items():
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
    """Set the type of the weights in a ``config.json`` of either spelling."""
    config.pop("torch_dtype", None)
    config["dtype"] = jnp.dtype(dtype).name
    for part in config.values():
        for name in DTYPE_NAMES:
            if isinstance(part, dict) and name in part:
                part[name] = config["dtype"]


def read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path, "download it again")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the folder of a downloaded checkpoint") from error


def write_json_file(path: Path, value: Any) -> None:
    with _user_errors(path):
        write_json(path, value)


def write_tensors(path: Path, params: dict[str, jax.Array], members: dict[str, tuple[Place, Any]]) -> int:
    """Write one file of weights and return the bytes in its tensors."""
    tensors = {}
    for key, (place, dtype) in members.items():
        x = params[place.path] if place.layer is None else params[place.path][place.layer]
        tensors[key] = np.empty(place.shape, dtype)
        _copy(tensors[key], _turn(place.path, np.asarray(x), place.shape))
    _write_file(path, functools.partial(save_file, tensors, metadata={"format": "pt"}))
    return sum(x.nbytes for x in tensors.values())


def _write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` write a file, which appears at ``path`` only when it is complete."""
    with _user_errors(path), written(path) as part:
        write(part)


@contextlib.contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing into a UserError that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
