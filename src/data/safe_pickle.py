"""Pickled arrays without the danger of pickles: a file names objects, this module chooses them.

A pickle may call whatever it names. Here a name is looked up only in a table of harmless
replacements, so nothing that a file contains or names is ever executed. Classes of NumPy and
PyTorch are not in the tables either: their pickled state reaches raw memory, so types, shapes and
offsets are checked before it does. Imports neither MindSpore nor PyTorch.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from src.errors import UserError


@contextmanager
def damage_reported(origin: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader raise, nearly anything, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{origin}: damaged or no {kind} ({reason})") from error


# The unpickler written in Python: that in C allocates gigabytes for one damaged memo index.
class _Unpickler(pickle._Unpickler):
    """Resolves names by a table; ``load`` has the arguments."""

    def __init__(
        self,
        file: IO[bytes],
        origin: str,
        allowed: Mapping[str, Any],
        resolve: Callable[[Any], Any] | None,
        encoding: str,
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._origin = origin
        self._allowed = allowed
        self._resolve = resolve

    def find_class(self, module: str, name: str) -> Any:
        """The object for a name in the file."""
        try:
            return self._allowed[f"{module}.{name}"]
        except KeyError:
            raise UserError(
                f"{self._origin}: asks for '{module}.{name}', which is refused, and nothing in the "
                "file was executed; save its arrays or tensors and nothing else"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        """The object that the file stores outside its pickle under ``pid``."""
        if self._resolve is None:
            raise pickle.UnpicklingError("refers to something outside itself")
        return self._resolve(pid)


def load(
    file: IO[bytes],
    origin: str,
    allowed: Mapping[str, Any],
    *,
    resolve: Callable[[Any], Any] | None = None,
    encoding: str = "ASCII",
) -> Any:
    """Unpickle a file that names nothing but what is in ``allowed``.

    Args:
        file: the pickle.
        origin: names the file in errors.
        allowed: ``module.name`` as the file says it, and the object that stands for it.
        resolve: gives the objects that the file stores outside its pickle (persistent ids).
        encoding: of Python 2 strings, see ``pickle.load``.

    Raises:
        UserError: the file names anything else, or is damaged.
    """
    with damage_reported(origin, "pickle"):
        return _Unpickler(file, origin, allowed, resolve, encoding).load()


class _DType:
    """In place of ``numpy.dtype``: plain numbers; no records, no references to objects."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        code = code.decode() if isinstance(code, bytes) else code
        if not re.fullmatch("[biuf][1248]", code):
            raise ValueError(f"array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        # A dtype's state is (version, byte order, ...); NumPy refuses other orders itself.
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(cast(Literal["<", ">", "|", "="], order))


class _Array(np.ndarray):
    """In place of ``numpy.ndarray``: takes contents from a pickle only with a type of numbers."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran_order, data = state
        # 1 is the version of the state.
        super().__setstate__((1, shape, kind.dtype, fortran_order, data))


def _reconstruct(*_: Any) -> _Array:
    return _Array(0, np.uint8)


def _encode(text: str, encoding: str) -> bytes:
    """In place of ``_codecs.encode``, a call of which Python 3 writes for bytes in protocol 2."""
    if encoding != "latin1":
        raise ValueError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


_NUMPY = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,  # from NumPy 2
    "numpy.ndarray": None,  # only ever an argument of _reconstruct
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
}


def load_arrays(file: IO[bytes], origin: str) -> Any:
    """Unpickle dicts, lists, numbers, text and numeric arrays; text of Python 2 becomes bytes."""
    return load(file, origin, _NUMPY, encoding="bytes")


class _StateDict(dict):
    """In place of ``collections.OrderedDict``, without PyTorch's attribute for layer versions."""

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
    """In place of ``torch._utils._rebuild_tensor_v2``.

    Offset and stride count elements of the storage. A view outside of it is refused.
    """
    count = math.prod(size)
    # Lengths that differ are refused below.
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
    if (
        storage.ndim != 1
        or len(size) != len(stride)
        or min((offset, *size, *stride)) < 0
        or count > storage.size
        or (count and last >= storage.size)
    ):
        raise ValueError(
            f"tensor of size {size}, stride {stride}, offset {offset} in {storage.size} numbers"
        )
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
    return tensor


_STORAGES = {
    "Double": "f8",
    "Float": "f4",
    "Half": "f2",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "b1",
}
_TORCH = {
    "collections.OrderedDict": _StateDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    **{f"torch.{name}Storage": code for name, code in _STORAGES.items()},
}
# First bytes of torch.save files of before PyTorch 1.6: its magic number as a pickle.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def load_torch(path: Path) -> Any:
    """Read what ``torch.save`` wrote, tensors as arrays, without PyTorch.

    Raises:
        UserError: the file is damaged, of before PyTorch 1.6, or holds more than tensors, dicts,
            lists and text.
    """
    with open(path, "rb") as file, damage_reported(path, "PyTorch file"):
        if file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC:
            raise UserError(
                f"{path}: in the format of before PyTorch 1.6; load and save it with a newer "
                "PyTorch, or take the weights as .safetensors"
            )
        with zipfile.ZipFile(file) as archive:
            return _load_torch_zip(archive, str(path))


def _load_torch_zip(archive: zipfile.ZipFile, origin: str) -> Any:
    """Read the pickle ``data.pkl`` of an archive, and the numbers of each tensor beside it."""
    names = archive.namelist()
    root = next((name[: -len("data.pkl")] for name in names if name.endswith("/data.pkl")), "")
    big = f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big"
    order = ">" if big else "<"  # older files lack the entry and are little-endian
    storages: dict[str, np.ndarray] = {}

    def storage(pid: tuple) -> np.ndarray:
        _, code, key, _, count = pid  # "storage", type, name, device, number of elements
        if key not in storages:
            dtype, entry = np.dtype(order + code), archive.getinfo(f"{root}data/{key}")
            size = count * dtype.itemsize
            if entry.file_size != size:
                raise ValueError(f"storage {key} has {entry.file_size} bytes, should have {size}")
            storages[key] = np.frombuffer(archive.read(entry), dtype)
        return storages[key]

    with archive.open(f"{root}data.pkl") as file:
        return load(file, origin, _TORCH, resolve=storage)
