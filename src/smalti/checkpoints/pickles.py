"""Other people's checkpoint files -> their tensors and plain values; nothing in them is ever run.

Checkpoints of PyTorch Lightning hold, besides the weights, objects of classes that need not be installed here
(callbacks, settings). Those become dead stand-ins. What would call a function is refused.
"""

from __future__ import annotations

import collections
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json

OBJECTS = (
    *(
        "pytorch_lightning",
        "lightning",
        "lightning_fabric",
        "lightning_utilities",
        "torchmetrics",
        "omegaconf",
        "taming",
        "ldm",
        "main",
    ),
    *("numpy", "pathlib", "datetime", "argparse", "typing", "enum", "_codecs", "antlr4"),
)
"""Packages whose objects occur in such files although they are not weights; replaced even where they are called."""


class _Dead(type):
    """The class of stand-in classes. To call one is to call what it stands for: only objects of known packages may be
    made so."""

    home: str

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        if cls.home.partition(".")[0] not in OBJECTS:
            _refuse(f"{cls.home}.{cls.__name__}")
        return _empty(cls)


def _empty(cls: Any) -> Any:
    """An instance of a stand-in class, without any content."""
    return object.__new__(cls)


def _refuse(name: str) -> NoReturn:
    raise SmaltiError(f"it calls {name}, which weights do not need; nothing was executed. Do not use this file")


def _stand_in(home: str, name: str) -> _Dead:
    def swallow(self: object, *arguments: Any) -> None:
        """Take whatever the pickle gives: state, items, arguments."""

    body = {
        "home": home,
        "__new__": lambda cls, *arguments, **options: _empty(cls),
        "__setstate__": swallow,
        "__setitem__": swallow,
        "append": swallow,
        "extend": swallow,
        "add": swallow,
        "__hash__": object.__hash__,
    }
    return _Dead(name, (), body)


def _reconstructor(cls: type, base: type, state: object) -> Any:
    """`copyreg._reconstructor`, for stand-ins alone."""
    if not isinstance(cls, _Dead):
        _refuse(f"copyreg._reconstructor of {cls!r}")
    return _empty(cls)


_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)

SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "set"): set,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "int"): int,
    ("builtins", "object"): object,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{("torch", str(kind).removeprefix("torch.")): kind for kind in _DTYPES},
}
"""What a file may name and get: builders of tensors and containers, none of which does anything else."""

_NAMES_NOW = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules as older pickles name them."""


class _Unpickler(pickle.Unpickler):
    """Knows `SAFE`; everything else becomes a stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        module = _NAMES_NOW.get(module, module)
        return SAFE[(module, name)] if (module, name) in SAFE else _stand_in(module, name)


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_PICKLE: Any = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="smalti")


def read_pickle(path: Path) -> Any:
    """A file that `torch.save` wrote -> its contents, tensors on the CPU, objects of foreign classes as stand-ins.

    Raises `SmaltiError` for a missing, damaged or truncated file, and for one that would run code.
    """
    if not path.is_file():
        raise SmaltiError(f"there is no file {path}")
    try:
        # Not mapped into memory: a file that changes under a mapping ends the process.
        with path.open("rb") as file:
            _check_file_kind(file)
            return torch.load(file, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except SmaltiError as error:
        raise SmaltiError(f"{path} was refused: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything; nothing but reading happens above
        reason = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        raise SmaltiError(f"{path} is damaged, truncated or no checkpoint ({reason}); copy it again") from error


def _check_file_kind(file: BinaryIO) -> None:
    """Raise for what `torch.load` would pass to something else than our unpickler: TorchScript, whose programs run when
    they are loaded, and tar files of PyTorch before 0.1.10, whose members it would unpack.
    """
    begin = file.read(4)
    file.seek(0)
    if begin == b"PK\x03\x04":
        records: list[str] = torch._C.PyTorchFileReader(file).get_all_records()  # as `torch.load` lists them
        file.seek(0)
        if "constants.pkl" in records:
            raise SmaltiError(
                "it is a program (TorchScript), and not weights; nothing was executed. Do not use this file"
            )
    elif begin[:1] != pickle.PROTO:
        raise ValueError("it begins neither as a zip file nor as a pickle")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A checkpoint (.ckpt, .pt, .pth, .bin or .safetensors) -> its weights by name, as `tensors_in` has them.

    One that was cut into shards is read through its index (.index.json), which may be named itself. Raises as
    `read_pickle`, and where there are none.
    """
    index = path if path.suffix == ".json" else path.with_name(f"{path.name}.index.json")
    if index.is_file() and (index == path or not path.is_file()):
        return {name: tensor for shard in _shards(index) for name, tensor in read_tensors(shard).items()}
    if path.suffix == ".safetensors":
        try:
            return unwrapped(load_file(path))
        except (SafetensorError, OSError) as error:
            raise SmaltiError(f"{path} is damaged, truncated or missing ({error}); copy it again") from error
    content = read_pickle(path)
    tensors = tensors_in(content, sections=SECTIONS) if isinstance(content, Mapping) else {}
    if not tensors:
        raise SmaltiError(f"{path} holds no weights by name; it is not a checkpoint of a model")
    return tensors


def _shards(index: Path) -> list[Path]:
    """The index of a checkpoint in shards -> these files, all in the index's folder."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, Mapping) else None
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, Mapping) else []
    if not names or any(Path(name).name != name or Path(name).suffix == ".json" for name in names):
        raise SmaltiError(f"{index} names no shards in its folder (weight_map); copy it again")
    missing = [name for name in names if not index.with_name(name).is_file()]
    if missing:
        raise SmaltiError(
            f"{index} names {len(names)} shards, of which {len(missing)} are missing, first {missing[0]}; put "
            "them beside it"
        )
    return [index.with_name(name) for name in names]


SECTIONS = ("state_dict", "model", "ema", "module")
"""Where programs keep weights in a file: Lightning, others, LlamaGen, DeepSpeed."""

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What PyTorch adds to the names of weights: DistributedDataParallel, `torch.compile`, FSDP, activation
checkpointing."""


def tensors_in(content: Mapping[Any, Any], *, sections: Sequence[str]) -> dict[str, Tensor]:
    """What a file holds -> the tensors by name in the first of the `sections` that there is, else at the top,
    `unwrapped`."""
    section = next((content[key] for key in sections if isinstance(content.get(key), Mapping)), content)
    return unwrapped({str(name): value for name, value in section.items() if isinstance(value, Tensor)})


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name -> the same without the `WRAPPERS` in their names.

    >>> list(unwrapped({"module._orig_mod.encoder.bias": torch.zeros(1)}))
    ['encoder.bias']
    """
    wrapper = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(WRAPPERS)})\.")
    bare = {name: wrapper.sub("", name) for name in weights}
    if len(set(bare.values())) < len(bare):  # then they tell weights apart, and are not wrappers
        return dict(weights)
    return {bare[name]: tensor for name, tensor in weights.items()}
