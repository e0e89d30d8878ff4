"""Weights from every kind of file give the network that they were saved from.

Damaged and hostile files are refused.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import save_file

from src.arch.architecture import load_architecture
from src.checkpoint.pretrained import (
    load_pretrained,
    read_weights,
    to_project_names,
    to_timm_names,
)
from src.data.safe_pickle import load_arrays
from src.errors import UserError
from src.spnasnet import SPNASNet

ARCH = load_architecture("spnas_pixel1_32")
CLASSES = 10
IMAGES = np.random.RandomState(7).randn(2, 3, 32, 32).astype(np.float32)


def build(num_classes: int = CLASSES) -> SPNASNet:
    return SPNASNet(ARCH, num_classes).set_train(False)


@pytest.fixture(scope="module")
def source() -> dict[str, np.ndarray]:
    """Random weights and statistics of batch normalisation, so small that activations stay so."""
    random = np.random.RandomState(0)

    def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith(("gamma", "moving_variance")):
            return random.uniform(0.5, 1.5, shape)
        return random.randn(*shape) * (0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[1:])))

    return {
        name: values(name, parameter.shape).astype(np.float32)
        for name, parameter in build().parameters_and_names()
    }


@pytest.fixture(scope="module")
def source_logits(source) -> np.ndarray:
    network = build()
    for name, parameter in network.parameters_and_names():
        parameter.set_data(Tensor(source[name]))
    logits = network(Tensor(IMAGES)).asnumpy()
    assert np.isfinite(logits).all() and np.abs(logits[0] - logits[1]).min() > 0
    return logits


def zoo_name(name: str) -> str:
    """The model zoo's name of a parameter of the published network.

    Written out for its stages of 3, 4, 4 and 8 blocks.
    """
    places = (
        ["0.conv2"]
        + [f"{s}.{j}" for s, n in enumerate((3, 4, 4, 8), start=1) for j in range(n)]
        + ["5.conv1"]
    )
    name = re.sub(r"^blocks\.(\d+)", lambda match: f"features.{places[int(match[1])]}", name)
    for ours, theirs in (("expand", "exp_conv"), ("depthwise", "conv1"), ("project", "conv2")):
        name = name.replace(f".{ours}.", f".{theirs}.")
    name = re.sub(r"^stem\.", "features.0.conv1.", name)
    name = re.sub(r"^head\.", "features.5.conv2.", name)
    return re.sub(r"^classifier\.", "output.", name)


def timm_name(name: str) -> str:
    """The name of a parameter of the published network in timm.

    Written out for its stages of 1, 3, 4, 4, 4, 4 and 1 blocks.
    """
    places = [f"{s}.{j}" for s, n in enumerate((1, 3, 4, 4, 4, 4, 1)) for j in range(n)]
    for ours, theirs in (
        ("gamma", "weight"),
        ("beta", "bias"),
        ("moving_mean", "running_mean"),
        ("moving_variance", "running_var"),
    ):
        name = re.sub(rf"\.{ours}$", f".{theirs}", name)
    parts = {"stem.conv": "conv_stem", "stem.bn": "bn1", "head.conv": "conv_head", "head.bn": "bn2"}
    if name.startswith("blocks.0."):
        parts = {
            "depthwise.conv": "conv_dw",
            "depthwise.bn": "bn1",
            "project.conv": "conv_pw",
            "project.bn": "bn2",
        }
    elif name.startswith("blocks."):
        parts = {
            "expand.conv": "conv_pw",
            "expand.bn": "bn1",
            "depthwise.conv": "conv_dw",
            "depthwise.bn": "bn2",
            "project.conv": "conv_pwl",
            "project.bn": "bn3",
        }
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return re.sub(r"^blocks\.(\d+)", lambda match: f"blocks.{places[int(match[1])]}", name)


def write_ckpt(path, weights, **extra) -> None:
    ms.save_checkpoint(
        [{"name": name, "data": Tensor(value)} for name, value in weights.items()],
        str(path),
        append_dict=extra or None,
    )


def packed(entries) -> tuple[dict[str, tuple], np.ndarray]:
    """All arrays in one storage, so that offsets count; matrices transposed, so that strides do."""
    tensors, parts, offset = {}, [], 0
    for name, value in entries.items():
        value = np.asfortranarray(value) if value.ndim == 2 else value
        tensors[name] = offset, value.shape, tuple(step // value.itemsize for step in value.strides)
        parts.append(value.ravel("K"))
        offset += value.size
    return tensors, np.concatenate(parts)


def write_pth(path, tensors, storage, monkeypatch) -> None:
    """Write a state dict as torch.save does.

    Stand-ins take the place of the two objects of torch that it names.

    Args:
        tensors: offset, size and stride of each tensor in the storage.
    """
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    class FloatStorage:
        pass

    def _rebuild_tensor_v2(*_):
        raise NotImplementedError

    for module, member in ((torch, FloatStorage), (utils, _rebuild_tensor_v2)):
        member.__module__, member.__qualname__ = module.__name__, member.__name__
        setattr(module, member.__name__, member)

    class SavedTensor:
        def __init__(self, offset, size, stride):
            self.arguments = FloatStorage(), offset, size, stride, False, OrderedDict()

        def __reduce__(self):
            return _rebuild_tensor_v2, self.arguments

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return (
                ("storage", FloatStorage, "0", "cpu", storage.size)
                if isinstance(obj, FloatStorage)
                else None
            )

    state = OrderedDict((name, SavedTensor(*place)) for name, place in tensors.items())
    state._metadata = OrderedDict({"": {"version": 1}})
    pickled = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        Pickler(pickled, protocol=2).dump(state)
    write_zip(path, pickled.getvalue(), storage)


def write_zip(path, pickled: bytes, storage: np.ndarray) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", storage.tobytes())


class TestSources:
    """Each kind of file reproduces the logits of the network it was saved from, exactly."""

    def check(self, path, name: str, source_logits, unused=()) -> None:
        network = build()
        report = load_pretrained(network, path)
        assert report.source == name and len(report.loaded) == len(network.parameters_dict())
        assert (report.fresh, report.unused, report.notes) == ((), unused, ())
        np.testing.assert_array_equal(network(Tensor(IMAGES)).asnumpy(), source_logits)

    def test_project_checkpoint(self, tmp_path, source, source_logits):
        path = tmp_path / "net.ckpt"
        state = {
            f"moments.{name}": value * 0
            for name, value in source.items()
            if name.endswith("weight")
        }
        averaged = {f"ema.{name}": value for name, value in source.items()}
        plain = {name: value + 1 for name, value in source.items()}
        write_ckpt(
            path, {**plain, **state, **averaged, "global_step": np.int32([3])}, meta='{"epoch": 3}'
        )
        assert read_weights(path).keys() == source.keys()
        self.check(path, "project", source_logits)

    def test_partly_averaged(self, tmp_path):
        path = tmp_path / "net.ckpt"
        write_ckpt(
            path,
            {
                "stem.bn.gamma": np.ones(2),
                "stem.bn.beta": np.ones(2),
                "ema.stem.bn.gamma": np.zeros(2),
            },
            meta="{}",
        )
        weights = read_weights(path)
        assert weights["stem.bn.gamma"].tolist() == [0, 0] and weights["stem.bn.beta"].tolist() == [
            1,
            1,
        ]

    @pytest.mark.parametrize("prefix", ["", "huawei", "network."])
    def test_model_zoo(self, tmp_path, source, source_logits, prefix):
        path = tmp_path / "spnasnet-180_1251.ckpt"
        moments = {
            f"moments.{prefix}{zoo_name('stem.conv.weight')}": source["stem.conv.weight"] * 0
        }
        write_ckpt(
            path, {**moments, **{prefix + zoo_name(name): value for name, value in source.items()}}
        )
        self.check(path, "model zoo", source_logits, unused=tuple(moments))

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_timm_safetensors(self, tmp_path, source, source_logits, prefix):
        path = tmp_path / "model.safetensors"
        entries = {prefix + timm_name(name): value for name, value in source.items()}
        save_file({**entries, f"{prefix}bn1.num_batches_tracked": np.array(5)}, path)
        self.check(path, "timm", source_logits)

    def test_timm_pth(self, tmp_path, source, source_logits, monkeypatch):
        path = tmp_path / "model.pth"
        write_pth(
            path, *packed({timm_name(name): value for name, value in source.items()}), monkeypatch
        )
        self.check(path, "timm", source_logits)

    def test_known_names(self):
        """A few names as they stand in published files."""
        zoo = [
            "huaweifeatures.0.conv1.conv.weight",
            "huaweifeatures.0.conv2.conv1.bn.gamma",
            "huaweifeatures.1.0.exp_conv.conv.weight",
            "huaweifeatures.4.7.conv1.bn.moving_variance",
            "huaweifeatures.5.conv1.conv2.bn.beta",
            "huaweifeatures.5.conv2.conv.weight",
            "huaweioutput.bias",
        ]
        assert list(to_project_names(zoo, "file")[1].values()) == [
            "stem.conv.weight",
            "blocks.0.depthwise.bn.gamma",
            "blocks.1.expand.conv.weight",
            "blocks.2.depthwise.bn.moving_variance",
            "blocks.3.project.bn.beta",
            "head.conv.weight",
            "classifier.bias",
        ]
        timm = [
            "conv_stem.weight",
            "blocks.0.0.conv_pw.weight",
            "blocks.1.0.conv_pwl.weight",
            "blocks.1.0.bn3.running_var",
            "blocks.1.10.conv_dw.weight",
            "blocks.1.2.conv_dw.weight",
            "bn2.bias",
        ]
        assert list(to_project_names(timm, "file")[1].values()) == [
            "stem.conv.weight",
            "blocks.0.project.conv.weight",
            "blocks.1.project.conv.weight",
            "blocks.1.project.bn.moving_variance",
            "blocks.3.depthwise.conv.weight",
            "blocks.2.depthwise.conv.weight",
            "head.bn.beta",
        ]

    def test_names_for_timm(self, source):
        stages = (1, 3, 4, 4, 4, 4, 1)
        blocks = [f"blocks.{s}.{j}" for s, n in enumerate(stages) for j in range(n)]
        assert to_timm_names(source, blocks) == {name: timm_name(name) for name in source}


class TestLoading:
    @pytest.fixture()
    def file(self, tmp_path, source):
        def write(**changed):
            save_file(
                {
                    timm_name(name): changed.get(name.replace(".", "_"), value)
                    for name, value in source.items()
                },
                tmp_path / "model.safetensors",
            )
            return tmp_path / "model.safetensors"

        return write

    def test_other_class_count(self, file, source):
        network = build(num_classes=7)
        initial = network.classifier.weight.asnumpy()
        report = load_pretrained(network, file())
        assert report.fresh == ("classifier.weight", "classifier.bias")
        assert "10 classes in the file, 7 in the network" in report.summary()
        np.testing.assert_array_equal(network.classifier.weight.asnumpy(), initial)
        np.testing.assert_array_equal(
            network.head.conv.weight.asnumpy(), source["head.conv.weight"]
        )

    def test_wrong_shape_changes_nothing(self, file):
        network = build()
        initial = network.stem.conv.weight.asnumpy()
        path = file(blocks_4_depthwise_conv_weight=np.zeros((144, 1, 3, 3), np.float32))
        with pytest.raises(UserError) as caught:
            load_pretrained(network, path)
        for part in (
            str(path),
            "blocks.2.0.conv_dw.weight",
            "blocks.4.depthwise.conv.weight",
            "(144, 1, 3, 3)",
            "(144, 1, 5, 5)",
        ):
            assert part in str(caught.value)
        np.testing.assert_array_equal(network.stem.conv.weight.asnumpy(), initial)

    def test_half_precision(self, file, source):
        network = build()
        half = source["stem.conv.weight"].astype(np.float16)
        load_pretrained(network, file(stem_conv_weight=half))
        assert network.stem.conv.weight.dtype == ms.float32
        np.testing.assert_array_equal(network.stem.conv.weight.asnumpy(), half)

    def test_missing_entries_are_reported(self, tmp_path, source):
        path = tmp_path / "model.safetensors"
        save_file(
            {name: value for name, value in source.items() if not name.startswith("head.bn")}, path
        )
        report = load_pretrained(build(), path)
        assert set(report.fresh) == {name for name in source if name.startswith("head.bn")}
        assert "head.bn.gamma" in report.summary()

    def test_other_epsilon_is_reported(self, file):
        network = build()
        network.stem.bn.eps = 1e-3
        assert "1e-05" in load_pretrained(network, file()).summary()

    def test_nothing_matches(self, tmp_path):
        path = tmp_path / "resnet.safetensors"
        save_file({"layer1.0.conv1.weight": np.zeros(3)}, path)
        with pytest.raises(
            UserError, match="holds no weights of such a network.*found layer1.0.conv1.weight"
        ):
            load_pretrained(build(), path)


class Hostile:
    """Unpickled as pickle does it, this makes a file."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class TestRefusedFiles:
    def refused(self, path, reason: str) -> None:
        with pytest.raises(UserError, match=reason) as caught:
            read_weights(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_hostile_pickle_is_not_executed(self, tmp_path, protocol):
        marker, path = tmp_path / "executed", tmp_path / "model.pth"
        pickled = pickle.dumps({"conv_stem.weight": Hostile(marker)}, protocol)
        write_zip(path, pickled, np.zeros(1, np.float32))
        self.refused(
            path, r"asks for '\w+\.system', which is refused, and nothing in the file was executed"
        )
        with pytest.raises(UserError, match="batch_1: asks for"):
            load_arrays(io.BytesIO(pickled), "batch_1")
        assert not marker.exists()
        pickle.loads(pickled)  # the file is as hostile as it claims
        assert marker.exists()

    @pytest.mark.parametrize(
        "offset, size, stride",
        [
            (2, (3,), (1,)),
            (1, (2, 2), (2, 1)),
            (3, (2,), (-1,)),
            (-1, (2,), (1,)),
            (0, (9,), (0,)),
            (0, (2, 2), (1,)),
        ],
    )
    def test_tensor_beyond_its_storage(self, tmp_path, monkeypatch, offset, size, stride):
        path, storage = tmp_path / "model.pth", np.arange(4, dtype=np.float32)
        write_pth(path, {"whole": (0, (2, 2), (1, 2)), "scalar": (3, (), ())}, storage, monkeypatch)
        weights = read_weights(path)
        assert weights["whole"].tolist() == [[0, 2], [1, 3]] and weights["scalar"] == 3
        write_pth(path, {"beyond": (offset, size, stride)}, storage, monkeypatch)
        self.refused(path, "tensor of size")

    def test_storage_of_another_length(self, tmp_path, monkeypatch):
        path = tmp_path / "model.pth"
        write_pth(
            path, {"tensor": (0, (4,), (1,))}, np.zeros(4, np.float64), monkeypatch
        )  # said to be float32
        self.refused(path, "storage 0 has 32 bytes, should have 16")

    @pytest.mark.parametrize(
        "kept", [0.6, 0.99, 0]
    )  # not 0.5: cut between two entries, a checkpoint is only shorter
    @pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pth"])
    def test_truncated(self, tmp_path, suffix, kept, monkeypatch):
        whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
        entries = {
            f"blocks.{index}.expand.conv.weight": np.ones((40, 40), np.float32)
            for index in range(4)
        }
        if suffix == ".pth":
            write_pth(whole, *packed(entries), monkeypatch)
        else:
            (write_ckpt if suffix == ".ckpt" else lambda path, weights: save_file(weights, path))(
                whole, entries
            )
        assert read_weights(whole).keys() == entries.keys()
        data = whole.read_bytes()
        path.write_bytes(data[: int(len(data) * kept)])
        self.refused(path, "damaged or no ")

    def test_flipped_bit(self, tmp_path):
        path = tmp_path / "net.ckpt"
        ms.save_checkpoint(
            [{"name": "stem.conv.weight", "data": Tensor(np.ones(100))}], str(path), crc_check=True
        )
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / "flipped.ckpt").write_bytes(data)
        read_weights(path)
        self.refused(tmp_path / "flipped.ckpt", "damaged")

    def test_damage_without_a_checksum_ends_no_process(self, tmp_path):
        """MindSpore's own reader dies of some: where a shape promises more than there is."""
        path, random = tmp_path / "net.ckpt", np.random.default_rng(0)
        write_ckpt(path, {"stem.conv.weight": np.ones((4, 3, 3, 3), np.float32)})
        whole, refused = path.read_bytes(), 0
        for _ in range(300):
            data = bytearray(whole)
            for place in random.integers(0, 60, 2):  # the description comes first
                data[place] = random.integers(0, 256)
            path.write_bytes(data)
            try:
                read_weights(path)
            except UserError as error:
                assert str(error).startswith(f"{path}: damaged or no ")
                refused += 1
        assert refused > 100

    def test_pytorch_of_before_1_6(self, tmp_path):
        path = tmp_path / "model.pth"
        path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2))
        self.refused(path, "before PyTorch 1.6.*safetensors")

    def test_no_such_file_or_kind(self, tmp_path):
        self.refused(tmp_path / "absent.ckpt", "no such file")
        self.refused(tmp_path / "model.onnx", r"\.ckpt, \.safetensors, \.pth, \.pt")


class TestArrays:
    """Pickles as CIFAR-10 comes in."""

    def test_python_2(self):
        """Byte for byte what Python 2 and NumPy 1 wrote: short strings without a type."""
        pickled = (
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
            b"K\x00\x85U\x01b\x87R"
            b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xff"
            b"J\xff\xff\xff\xffK\x00tb\x89U\x06\x00\x01\x02\xfd\xfe\xfftbU\x06labels]K\x07au."
        )
        batch = load_arrays(io.BytesIO(pickled), "batch")
        assert batch[b"labels"] == [7]
        np.testing.assert_array_equal(
            batch[b"data"], np.array([[0, 1, 2], [253, 254, 255]], np.uint8)
        )

    @pytest.mark.parametrize("protocol", [0, 2, 3, 4])
    @pytest.mark.parametrize("dtype", ["u1", "<f4", ">i8", "?"])
    def test_python_3(self, protocol, dtype):
        data = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
        batch = load_arrays(
            io.BytesIO(pickle.dumps({b"data": data, "names": ["a"]}, protocol)), "batch"
        )
        np.testing.assert_array_equal(batch[b"data"], data)
        assert batch["names"] == ["a"]

    @pytest.mark.parametrize("value", [np.array([None]), np.zeros(2, "i4,f4"), np.array(["text"])])
    def test_other_than_numbers_is_refused(self, value):
        with pytest.raises(UserError, match="batch: damaged or no pickle .array of type"):
            load_arrays(io.BytesIO(pickle.dumps(value, 2)), "batch")

    def test_damaged(self):
        pickled = pickle.dumps({b"data": np.zeros((4, 5), np.uint8)}, 2)
        for kept in range(len(pickled)):
            with pytest.raises(
                UserError, match="^batch: (damaged|asks for)"
            ):  # cut within a name, it asks for a part
                load_arrays(io.BytesIO(pickled[:kept]), "batch")

    def test_memo_index_takes_no_memory(self):
        tracemalloc.start()
        assert (
            load_arrays(io.BytesIO(b"\x80\x02]r\x00\x00\x10\x00."), "batch") == []
        )  # index 2 ** 20
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20
