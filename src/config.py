"""Configuration: every key, its type, its meaning, and the values that suit each data set.

Declarations only; ``src.cli`` makes a configuration of them from flags, a YAML file and a preset.
Imports no framework.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from src.arch.cost import CostName
from src.data.preprocessing import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    PolicyName,
    Preprocessing,
)
from src.errors import UserError
from src.lr_scheduler import ScheduleName
from src.recipe import SHORT_SEARCH, Preset, Purpose, for_folder

DatasetName = Literal["imagenet", "cifar10", "digits", "folder"]
OptimizerName = Literal["momentum", "rmsprop"]
# Per RGB channel, within what MindSpore's normalisation takes.
_PixelValue = Annotated[float, Field(ge=0, le=255)]
_PixelDeviation = Annotated[float, Field(gt=0, le=255)]


# Presets: what suits a data set, where neither flags nor the YAML file say otherwise.


# ImageNet as the model zoo trains it: 8 Ascend 910, lr_init 1.5, top-1 74.21 %.
imagenet_cfg: Preset = {
    "name": "imagenet",
    "arch": "spnas_pixel1",
    "image_height": 224,
    "image_width": 224,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "crop_scale": 0.08,
    "flip": True,
    "color_jitter": (0.5, 0.4, 0.3, 0.2),
}

# The user's own class folders: ImageNet's recipe, in which src.recipe replaces what suits what is
# found.
folder_cfg: Preset = {**imagenet_cfg, "name": "folder"}

cifar10_cfg: Preset = {
    "name": "cifar10",
    "arch": "spnas_pixel1_32",
    "image_height": 32,
    "image_width": 32,
    "resize": 32,
    "mean": CIFAR10_MEAN,
    "std": CIFAR10_STD,
    "crop_padding": 4,
    "flip": True,
    "batch_size": 64,
    "lr_init": 0.2,
    "lr_scheduler": "one_cycle",
    "epoch_size": 10,
}

# Small enough for a laptop: 1,437 images of 32x32, about two minutes to a top-1 of about 99 %.
digits_cfg: Preset = {
    "name": "digits",
    "arch": "spnas_pixel1_32",
    "data_path": "data/digits",
    "image_height": 32,
    "image_width": 32,
    "resize": 32,
    # Pixels become values from -1 to 1.
    "mean": (127.5, 127.5, 127.5),
    "std": (127.5, 127.5, 127.5),
    "crop_padding": 2,  # and no flip: a mirrored digit is not a digit
    "batch_size": 64,
    "lr_init": 0.1,
    "lr_scheduler": "one_cycle",
    "epoch_size": 5,
}

# A supernet, in place of a network, of any data set.
elastic_cfg: Preset = {
    "holdout": 0.1,
    "clip_norm": 1.0,
}

PRESETS: dict[str, Preset] = {
    "imagenet": imagenet_cfg,
    "cifar10": cifar10_cfg,
    "digits": digits_cfg,
    "folder": folder_cfg,
}

# What a training and a search of the same data set have in common: the images and their batches.
_IMAGE_KEYS = (
    "name",
    "data_path",
    "image_height",
    "image_width",
    "resize",
    "mean",
    "std",
    "crop_scale",
    "crop_padding",
    "flip",
    "color_jitter",
    "batch_size",
)

_images: dict[str, Preset] = {
    dataset: {key: preset[key] for key in _IMAGE_KEYS if key in preset}
    for dataset, preset in PRESETS.items()
}

# A search of images of 32x32; the defaults of SearchConfig are those of a search of ImageNet.
_small_search: Preset = {"space": "imagenet_32", **SHORT_SEARCH}

SEARCH_PRESETS: dict[str, Preset] = {
    **_images,
    "cifar10": {
        **_images["cifar10"],
        **_small_search,
        "lr_init": 0.03,  # at 0.1 the supernet's cross-entropy rises in the first epochs
        "epoch_size": 20,
    },
    "digits": {
        **_images["digits"],
        **_small_search,
        "batch_size": 32,
        "lr_init": 0.05,
        "epoch_size": 3,
    },
}


# Keys.


# A key is a flag, a line of a YAML file and a value of a configuration. Its description is what
# --help says, and its limits are checked wherever it comes from.


def _key(default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, **limits)


_STEPS = re.compile(r"(\d+)-(\d+)")  # of profile_steps
# Keys that say where and by what something is computed, and alter no result.
PLACE_KEYS = frozenset(
    (
        "checkpoint_path",
        "compile_cache",
        "data_path",
        "device_id",
        "num_parallel_workers",
        "val_data_path",
    )
)
FILE_NAME = r"^[^./][^/]*$"  # of a file that is not hidden


def _supernet_key() -> Any:
    return _key(None, "the supernet: its checkpoint, or the folder of its run")


class ConfigError(UserError, ValueError):
    """Keys that do not fit together; the message names them."""


class ProgramConfig(BaseModel):
    """Keys of a program; a configuration is checked when it is made, and does not change."""

    # An unknown key is an error: a misspelled one would otherwise be ignored in silence.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Preset:
        """Values, in place of the defaults, that suit what is ``given``."""
        return {}

    def changed(self, *keys: str) -> list[str]:
        """Which of some keys are not at their defaults."""
        return [k for k in keys if getattr(self, k) != type(self).model_fields[k].default]


class DeviceConfig(ProgramConfig):
    """Keys of every program that computes on a device."""

    device_target: Literal["Ascend", "CPU"] = _key("CPU", "device to run on")
    device_id: int = _key(0, "number of the Ascend device", ge=0)


class ComputeConfig(DeviceConfig):
    """Keys of every program that runs a network on images."""

    num_parallel_workers: int = _key(
        2, "threads of the data pipeline; fewer where there are fewer cores", ge=1
    )
    cpu_kernels: Literal["auto", "on", "off"] = _key(
        "auto",
        "the project's CPU operators: auto where they are available, on always (an error where "
        "they are not), off never",
    )
    compile_cache: bool = _key(True, "keep compiled graphs between runs of the same configuration")
    jit_level: Literal["O0", "O1", "O2"] | None = _key(
        None,
        "how MindSpore compiles graphs: O0 operator by operator, O1 fuses operators, O2 whole "
        "graphs, on Ascend only; its own choice where omitted",
    )

    @field_validator("cpu_kernels", mode="before")
    @classmethod
    def _word_of_bool(cls, value: Any) -> Any:
        """YAML reads on and off as booleans."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class RunConfig(ComputeConfig):
    """Keys of every program that trains something."""

    PRESETS: ClassVar[Mapping[str, Preset]] = PRESETS
    PURPOSE: ClassVar[Purpose] = "train"

    # What is trained on.
    name: str = _key("spnas", "name of the run and prefix of its files", pattern=FILE_NAME)
    dataset_name: DatasetName = _key("imagenet", "data set")
    data_path: str | None = _key(
        None, "folder with train/ and val/, the training folder itself, or CIFAR-10"
    )
    val_data_path: str | None = _key(None, "validation images, where they are in another folder")
    balance_classes: bool = _key(
        False, "train on the same number of images of each class in every epoch"
    )
    train_images: int | None = _key(
        None, "train on this number of images, a fixed random choice; on all where omitted", ge=1
    )
    holdout: float = _key(
        0.0,
        "share of the training images that are kept apart, to validate and to choose networks",
        ge=0,
        lt=1,
    )
    num_classes: int | None = _key(
        None, "number of classes; counted from the data where omitted", ge=2
    )

    # Images.
    image_height: int = _key(224, "height of the network's input, pixels", ge=1)
    image_width: int = _key(224, "width of the network's input, pixels", ge=1)
    resize: int | None = _key(
        None, "short side before the centre crop, pixels; 256/224 of the crop where omitted", ge=1
    )
    mean: tuple[_PixelValue, _PixelValue, _PixelValue] = _key(
        IMAGENET_MEAN, "mean per RGB channel, on the scale from 0 to 255"
    )
    std: tuple[_PixelDeviation, _PixelDeviation, _PixelDeviation] = _key(
        IMAGENET_STD, "standard deviation per RGB channel, on the scale from 0 to 255"
    )
    augment: bool = _key(True, "random augmentation of training images")
    crop_scale: float | None = _key(
        None, "smallest area of a random resized crop; null for none", gt=0, le=1
    )
    crop_padding: int = _key(0, "padding of a random crop at full size, pixels", ge=0)
    flip: bool = _key(False, "random horizontal flip")
    color_jitter: tuple[float, float, float, float] | None = _key(
        None, "brightness, contrast, saturation, hue; null for none"
    )
    auto_augment: PolicyName | None = _key(None, "policy of AutoAugment; null for none")
    cutout: int = _key(
        0, "side of a square that is zeroed after normalisation, pixels; 0 for none", ge=0
    )

    # Checkpoints and log.
    checkpoint_path: str = _key(".", "folder in which ckpt_0/ is made")
    keep_checkpoint_max: int = _key(40, "checkpoints to keep, besides the best", ge=1)
    ckpt_save_policy: Literal["latest_k", "top_k"] = _key(
        "latest_k", "which checkpoints to keep: the newest, or those of the highest top-1"
    )
    save_checkpoint_epochs: int = _key(
        1, "epochs between checkpoints, besides those of epochs that are validated", ge=1
    )
    save_checkpoint_steps: int = _key(
        0, "steps between checkpoints within an epoch; 0 for none", ge=0
    )
    val_while_train: bool = _key(True, "validate during training")
    val_interval_epochs: int = _key(1, "epochs between validations", ge=1)
    log_steps: int = _key(10, "steps between lines of metrics.jsonl and train.log", ge=1)
    print_steps: int = _key(
        0, "steps between such lines on the terminal, a multiple of log_steps; 0 for none", ge=0
    )
    profile_steps: str | None = _key(
        None, "steps, counted from 1, of which a trace is written, for example 20-30"
    )
    resume: bool = _key(False, "continue the run in checkpoint_path")

    # Optimisation: length and batches.
    epoch_size: int = _key(180, "epochs to train", ge=1)
    epoch_steps: int = _key(0, "batches per epoch at most; 0 for the whole epoch", ge=0)
    batch_size: int = _key(128, "images per step on each device", ge=1)
    accumulate_steps: int = _key(
        1, "batches whose gradients are averaged for one optimizer step", ge=1
    )
    # Learning rate; each schedule reads its own keys of these.
    lr_init: float | None = _key(
        None, "base learning rate; 0.26 for one device and 1.5 for eight where omitted", gt=0
    )
    lr_scheduler: ScheduleName = _key("cosine", "learning-rate schedule")
    warmup_epochs: float = _key(0.0, "epochs of linear warm-up; one_cycle has its own", ge=0)
    eta_min: float = _key(0.0, "final learning rate of the cosine", ge=0)
    lr_epochs: tuple[float, ...] = _key((30, 60, 90), "epochs at which the step schedule decays")
    lr_gamma: float = _key(0.97, "decay factor of the step and exponential schedules", gt=0, le=1)
    lr_decay_epochs: float = _key(2.4, "epochs between decays of the exponential schedule", gt=0)
    # Updates and loss.
    momentum: float = _key(0.9, "momentum", ge=0, lt=1)
    weight_decay: float = _key(
        1e-5, "L2 factor on weights, not on biases nor batch normalisation", ge=0
    )
    label_smooth_factor: float = _key(0.1, "label smoothing", ge=0, lt=1)
    bn_momentum: float = _key(0.9, "weight of the old value in moving statistics", ge=0, lt=1)
    clip_norm: float = _key(
        0.0, "global norm to which gradients are clipped; 0 for no clipping", ge=0
    )
    ema_decay: float = _key(
        0.0, "decay of the weight average that is validated and saved; 0 for none", ge=0, lt=1
    )
    # Precision. Level O1 is left out: MindSpore 2.8 fails on this network with it.
    amp_level: Literal["O0", "O2", "O3"] | None = _key(
        None,
        "mixed precision; O2 on Ascend and O0 on CPU where omitted; O2 on CPU is bfloat16 by the "
        "CPU operators, without a loss scale",
    )
    loss_scale: Literal["dynamic"] | float = _key(
        "dynamic", "loss scale of mixed precision: dynamic, or a number"
    )
    seed: int = _key(1, "seed of weights, order, augmentation and dropout", ge=0, lt=2**32)

    @field_validator("loss_scale", mode="before")
    @classmethod
    def _dynamic_or_number(cls, value: Any) -> Any:
        """One message for both; pydantic has one for each, of which users see the first."""
        try:
            if value == "dynamic" or float(value) > 0:
                return value
        except (TypeError, ValueError):
            pass
        raise PydanticCustomError("loss_scale", "should be dynamic or a number above 0")

    @field_validator("profile_steps")
    @classmethod
    def _first_and_last(cls, value: str | None) -> str | None:
        """Two numbers from 1 on, of which the second is not smaller."""
        match = _STEPS.fullmatch(value or "1-1")
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise PydanticCustomError("steps", "should be the first and the last step, as 20-30")
        return value

    @model_validator(mode="after")
    def _nothing_ignored(self) -> RunConfig:
        if self.crop_padding and self.crop_scale:
            raise ConfigError(
                "crop_padding and crop_scale are both given; with a crop of random size "
                "(crop_scale) nothing is padded, --crop_scale null for none"
            )
        if self.print_steps % self.log_steps:
            raise ConfigError(
                f"print_steps is {self.print_steps}, should be a multiple of log_steps, "
                f"{self.log_steps}"
            )
        return self

    @property
    def profiled_steps(self) -> range:
        """The steps of ``profile_steps``, counted from 1; empty where there are none."""
        match = _STEPS.fullmatch(self.profile_steps or "")
        return range(int(match[1]), int(match[2]) + 1) if match else range(0)

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Preset:
        """What suits the data set that is ``given``, or the default one."""
        name = given.get("dataset_name", cls.model_fields["dataset_name"].default)
        values = dict(cls.PRESETS[name])
        if name == "folder":
            own = for_folder(given, cls.PURPOSE)
            values.update({key: value for key, value in own.items() if key in cls.model_fields})
        return values

    def preprocessing(self) -> Preprocessing:
        """Evaluation preprocessing of this run."""
        # 224 of 256 pixels is the usual share of a centre crop on ImageNet.
        resize = self.resize or round(min(self.image_height, self.image_width) * 256 / 224)
        return Preprocessing(self.image_height, self.image_width, resize, self.mean, self.std)

    def augmentation(self) -> Augmentation | None:
        """Training augmentation of this run, None where it is switched off."""
        if not self.augment:
            return None
        return Augmentation(
            self.crop_scale,
            self.crop_padding,
            self.flip,
            self.color_jitter,
            self.auto_augment,
            self.cutout,
        )


class OptimizerConfig(RunConfig):
    """Keys of runs that choose an optimizer and may use dropout: all but one-shot supernets.

    A one-shot supernet has an optimizer of its own, which changes only the blocks of a step's path.
    """

    # The values of RMSProp are those of the released code (arXiv 1904.02877).
    optimizer: OptimizerName = _key("momentum", "optimizer")
    rmsprop_decay: float = _key(0.9, "decay of RMSProp's mean square", gt=0, lt=1)
    rmsprop_epsilon: float = _key(1e-3, "RMSProp's epsilon, added under the square root", gt=0)
    drop_rate: float = _key(0.0, "dropout before the classifier", ge=0, lt=1)


# Of TrainConfig, those that count with a space only.
SUPERNET_KEYS = ("subnets", "random_subnets", "distill", "calibration_images")


class TrainConfig(OptimizerConfig):
    """Keys of ``train.py``."""

    arch: str | None = _key(
        None,
        "shipped architecture or architecture file; spnas_pixel1 where neither it nor space is "
        "given",
    )
    pre_trained: str | None = _key(None, "weights to start from: .ckpt, .safetensors or .pth")
    # An elastic supernet, in place of a single network.
    space: str | None = _key(
        None, "search space, shipped or a file, whose networks are all trained, in one supernet"
    )
    subnets: Literal["sandwich", "random"] = _key(
        "sandwich",
        "networks that learn from a batch: the largest, the smallest and random ones, or a random "
        "one alone",
    )
    random_subnets: int = _key(2, "random networks of a sandwich", ge=0)
    distill: bool = _key(
        True, "in a sandwich, all but the largest learn its outputs instead of the labels"
    )
    calibration_images: int = _key(
        2000, "training images from which a validated subnet's statistics are taken", ge=2
    )

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Preset:
        """What suits the data set, and a supernet if a space is ``given``."""
        values = super().preset(given)
        if given.get("space"):
            values.pop("arch", None)
            values = {**elastic_cfg, **values}
        return values

    @model_validator(mode="before")
    @classmethod
    def _space_or_arch(cls, values: Any) -> Any:
        """Fill in what follows from which of the two is given."""
        values = dict(values)
        trains_space = bool(values.get("space"))
        if trains_space and values.get("arch"):
            raise ConfigError("arch and space are both given; train one network or all of a space")
        if not trains_space and values.get("arch") is None:
            values["arch"] = "spnas_pixel1"
        return values

    @model_validator(mode="after")
    def _keys_of_supernets(self) -> TrainConfig:
        """Refuse what would be ignored."""
        for key in () if self.space else self.changed(*SUPERNET_KEYS):
            raise ConfigError(f"{key} is for a supernet: --space names its search space")
        if self.space and self.changed("bn_momentum"):
            raise ConfigError("bn_momentum is for a network: a supernet has no moving statistics")
        for key in self.changed("random_subnets", "distill") if self.subnets == "random" else ():
            raise ConfigError(f"{key} is for --subnets sandwich, subnets is random")
        return self


class SearchConfig(OptimizerConfig):
    """Keys of ``search.py`` for superkernels.

    The defaults are those of the released code for ImageNet (arXiv 1904.02877).
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = SEARCH_PRESETS
    PURPOSE: ClassVar[Purpose] = "search"

    method: Literal["superkernel"] = _key(
        "superkernel", "how to search: superkernel, or one_shot with keys of its own"
    )
    space: str = _key("imagenet", "shipped search space or space file")
    cost: CostName = _key(
        "latency", "what is traded for accuracy: latency by a table, macs or params"
    )
    latency_table: str | None = _key(None, "shipped latency table or table file")
    target_latency_ms: float | None = _key(None, "latency to end at, milliseconds", gt=0)
    target: float | None = _key(None, "the same for cost macs and params, millions", gt=0)

    # The cost's part in the loss, and the epochs of a search: without it, with the budget falling,
    # with fixed decisions.
    latency_weight: float = _key(
        0.02,
        "lambda: the loss has lambda * 1000 * ln(cost); set by the search if a target is given",
        ge=0,
    )
    latency_free_epochs: float | None = _key(
        None, "first epochs without the cost; half of all where omitted", ge=0
    )
    settle_epochs: float | None = _key(
        None, "last epochs, in which decisions are fixed; an eighth of all where omitted", ge=0
    )

    # Indicators, which say whether a part of a superkernel is used, and their thresholds.
    indicator_draw_share: float = _key(
        0.5, "share of the steps in which an indicator is drawn between 0 and 1", gt=0, le=1
    )
    threshold_lr: float = _key(
        1.0,
        "learning rate of thresholds, as a multiple of the norms at the start of the search",
        gt=0,
    )

    # In place of a single search.
    sweep: str | None = _key(None, "search for each of these targets, for example 40,60,80")
    random: int = _key(
        0, "draw this number of random networks near the target instead of searching", ge=0
    )

    # Other defaults than those of a training.
    epoch_size: int = _key(8, "epochs to search", ge=1)
    lr_init: float | None = _key(
        None, "base learning rate; 0.016 for 256 images per step where omitted", gt=0
    )
    lr_scheduler: ScheduleName = _key("exponential", "learning-rate schedule")
    optimizer: OptimizerName = _key("rmsprop", "optimizer")
    drop_rate: float = _key(0.2, "dropout before the classifier", ge=0, lt=1)
    bn_momentum: float = _key(0.99, "weight of the old value in moving statistics", ge=0, lt=1)

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Preset:
        """What suits the data set; a latency table that is ``given`` decides the cost."""
        values = super().preset(given)
        if "latency_table" in given:
            values.pop("cost", None)
        return values

    @model_validator(mode="after")
    def _sweep_alone(self) -> SearchConfig:
        for key in ("target", "target_latency_ms", "random"):
            if self.sweep and getattr(self, key):
                raise ConfigError(f"sweep and {key} are both given; sweep names all targets")
        return self


class OneShotConfig(RunConfig):
    """Keys of a one-shot supernet's training; ``scripts/run_spnas.py`` has its own flags."""

    PRESETS: ClassVar[Mapping[str, Preset]] = _images

    # An update changes the blocks of one path, that of its last batch.
    accumulate_steps: Literal[1] = _key(1, "batches per optimizer step")
    layers: int = _key(20, "layers of the supernet", ge=1)
    num_choices: int = _key(4, "blocks that each layer chooses from", ge=1)
    space: str = _key(
        "one_shot_32", "shipped one-shot space, of which the first layers and blocks are taken"
    )


class CheckpointDataConfig(ComputeConfig):
    """Keys of programs whose data set is that of a checkpoint unless another one is given."""

    dataset_name: DatasetName | None = _key(None, "data set; the checkpoint's where omitted")
    data_path: str | None = _key(None, "data set's folder; the checkpoint's where omitted")
    val_data_path: str | None = _key(None, "validation images, where they are in another folder")


class SubnetDataConfig(CheckpointDataConfig):
    """Keys of programs that evaluate networks of a supernet."""

    calibration_images: int = _key(
        2000, "training images from which a network's normalisation statistics are taken", ge=2
    )
    val_images: int | None = _key(
        None, "validate on this number of images, a fixed random choice; on all where omitted", ge=1
    )
    batch_size: int = _key(200, "images per step", ge=2)


class SubnetConfig(SubnetDataConfig):
    """Keys of ``scripts/evaluate_subnets.py``."""

    ckpt: str | None = _supernet_key()
    near: str | None = _key(
        None, "all networks within 2 % of these millions of multiply-adds, for example 50,60"
    )
    even: int = _key(0, "further networks, evenly over the range of multiply-adds", ge=0)
    parts: bool = _key(False, "the largest network, and it without each part that can be removed")
    split: Literal["held", "val"] | None = _key(
        None,
        "images for the accuracies: held for those that the training kept apart (holdout), val for "
        "those of validation; held where there are any",
    )
    out: str = _key("subnets.jsonl", "file of accuracies; networks that are in it are not repeated")
    seed: int = _key(1, "seed of the networks", ge=0)


class PackConfig(SubnetDataConfig):
    """Keys of ``scripts/pack_supernet.py``."""

    ckpt: str | None = _supernet_key()
    accuracies: str | None = _key(None, "its networks' accuracies, of evaluate_subnets.py")
    networks: int = _key(40, "networks whose statistics are kept, over the whole range", ge=2)
    out: str = _key("supernet.safetensors", "file to write; the statistics lie beside it")

    @model_validator(mode="after")
    def _nothing_to_validate(self) -> PackConfig:
        if self.val_images is not None:
            raise ConfigError("val_images: packing evaluates nothing; accuracies has the results")
        return self


class ServeConfig(SubnetDataConfig):
    """Keys of ``search.py --from_supernet``."""

    from_supernet: str | None = _key(
        None,
        "elastic supernet of train.py --space: its checkpoint, the folder of its run, or a packed "
        "one by its file or, where it is shipped, its name",
    )
    name: str = _key("served", "first part of the networks' names", min_length=1)

    # What networks may cost.
    cost: CostName = _key("latency", "what is limited: latency by a table, macs or params")
    latency_table: str | None = _key(None, "shipped latency table or table file")
    target_latency_ms: float | None = _key(None, "milliseconds that the network may take", gt=0)
    target: float | None = _key(None, "the same for cost macs and params, millions", gt=0)
    sweep: str | None = _key(
        None,
        "a network for each of these limits, for example 2,3,4 or 30%,60% of the way from the "
        "smallest to the largest network",
    )
    front: int = _key(0, "this number of networks, with limits over the whole range", ge=0)

    # How they are chosen.
    evaluations: int = _key(100, "networks that are evaluated, for all limits together", ge=10)
    calibration_images: int = _key(
        1000, "training images from which a network's normalisation statistics are taken", ge=2
    )
    val_images: int | None = _key(
        2000, "held-out images from which its accuracy is taken, at most", ge=1
    )
    seed: int = _key(1, "seed of the networks", ge=0)

    # What becomes of them.
    finetune_epochs: int = _key(0, "epochs to train each network on, from its weights", ge=0)
    checkpoint_path: str = _key(".", "folder of the results")


class OneShotSearchConfig(SubnetDataConfig):
    """Keys of ``search.py --method one_shot``.

    The defaults of the evolution are those of the paper (arXiv 1904.00420).
    """

    method: Literal["one_shot"] = _key("one_shot", "how to search")
    ckpt: str | None = _supernet_key()
    name: str = _key("one_shot", "first part of the found network's name", min_length=1)

    # Which paths are evaluated.
    strategy: Literal["random", "evolution"] = _key("evolution", "how paths are drawn")
    search_num: int = _key(1000, "paths of a random search", ge=1)
    population: int = _key(50, "paths per generation", ge=1)
    generations: int = _key(20, "generations, the first of which is random", ge=1)
    crossover: int = _key(25, "paths per generation that have two parents", ge=0)
    mutation: int = _key(25, "paths per generation that have one parent", ge=0)
    mutation_prob: float = _key(0.1, "probability that a layer mutates", gt=0, le=1)
    top_k: int = _key(10, "best paths so far, which are the parents", ge=1)

    # How they are evaluated.
    precision: Literal["float32", "bfloat16"] = _key(
        "float32",
        "in which 1x1 convolutions multiply while paths are evaluated; bfloat16 needs the CPU "
        "operators",
    )

    # What a path may cost.
    cost: CostName = _key(
        "macs", "what is reported and limited: latency by a table, macs or params"
    )
    latency_table: str | None = _key(None, "latency table file for the supernet's space")
    target_latency_ms: float | None = _key(
        None, "milliseconds that a path may take; no limit where omitted", gt=0
    )
    target: float | None = _key(None, "the same for cost macs and params, millions", gt=0)

    checkpoint_path: str = _key(".", "folder of the results")
    seed: int = _key(1, "seed of the paths", ge=0)
    resume: bool = _key(False, "continue the search in checkpoint_path")

    @model_validator(mode="after")
    def _keys_of_strategies(self) -> OneShotSearchConfig:
        evolution = ("population", "generations", "crossover", "mutation", "mutation_prob", "top_k")
        other = {"random": ("evolution", evolution), "evolution": ("random", ("search_num",))}
        needed, keys = other[self.strategy]
        for key in self.changed(*keys):
            raise ConfigError(f"{key} is for --strategy {needed}, strategy is {self.strategy}")
        return self

    @model_validator(mode="after")
    def _children_within_population(self) -> OneShotSearchConfig:
        children = self.crossover + self.mutation
        if self.strategy == "evolution" and children > self.population:
            raise ConfigError(
                f"crossover and mutation are {children} paths together, population is "
                f"{self.population}, should be at least as many"
            )
        return self


class EvalConfig(CheckpointDataConfig):
    """Keys of ``eval.py``; what is not given comes from the checkpoint."""

    checkpoint_path: str = _key("./ckpt_0", "checkpoint, or folder of checkpoints")
    which: Literal["best", "last", "all"] = _key("best", "which checkpoints of a folder")
    batch_size: int = _key(64, "images per step", ge=1)
    per_class: bool = _key(False, "also the accuracy of each class, and the confusion matrix")
    output: str | None = _key(
        None, "JSON file of the results; eval.json beside the checkpoints where omitted"
    )


class ExportConfig(DeviceConfig):
    """Keys of ``export.py``; everything about the network comes from the checkpoint."""

    ckpt_file: str = _key("./ckpt_0/best.ckpt", "checkpoint to export")
    file_format: Literal["MINDIR", "AIR", "ONNX"] = _key(
        "MINDIR", "format of the model; AIR needs an Ascend device"
    )
    file_name: str = _key(
        "spnas",
        "path of the model without its ending; its description is written beside it",
        min_length=1,
    )
    batch_size: int = _key(1, "images per inference of the model", ge=1)
    mindir_version: Literal[1, 3] = _key(
        1, "MindIR's format version: 1 for MindSpore Lite 2.0.0, 3 for MindSpore's own"
    )
    no_fold: bool = _key(
        False, "keep batch normalisation instead of folding it into the convolutions"
    )

    # A model of int8 beside the one of float32, if it is worth it.
    int8: bool = _key(
        False,
        "also quantise the ONNX model to int8, measure what that costs and gains, and keep the "
        "result only within max_drop and min_gain",
    )
    calibration: str | None = _key(
        None, "folder of images for int8, which tell the range of the activations"
    )
    images: int = _key(500, "images of the calibration", ge=1)
    threads: int = _key(1, "threads of the runtimes in which int8 is measured", ge=1)
    max_drop: float = _key(0.5, "points of top-1 that int8 may lose", ge=0)
    min_gain: float = _key(
        1.2,
        "least ratio of the fastest time in float32 or bfloat16, in any runtime, to that of int8",
        gt=0,
    )

    @model_validator(mode="after")
    def _version_of_mindir(self) -> ExportConfig:
        if "mindir_version" in self.model_fields_set and self.file_format != "MINDIR":
            raise ConfigError(f"mindir_version is for MINDIR, file_format is {self.file_format}")
        return self

    @model_validator(mode="after")
    def _int8_of_onnx(self) -> ExportConfig:
        if self.int8:
            if self.file_format != "ONNX" or not self.calibration:
                raise ConfigError("int8 is for --file_format ONNX, and needs --calibration FOLDER")
            return self
        for key in ("calibration", "images", "threads", "max_drop", "min_gain"):
            if key in self.model_fields_set:
                raise ConfigError(f"{key} is for --int8, which is not given")
        return self


class ProfileConfig(ProgramConfig):
    """Keys of ``scripts/profile_latency.py``."""

    space: str = _key("imagenet", "shipped search space or space file")
    out: str = _key("tables/latency.json", "latency table to write", pattern=r".*\.json$")
    runtime: Literal["lite", "openvino", "mindspore", "onnxruntime"] = _key(
        "lite",
        "lite, openvino: MindSpore Lite or OpenVINO in C++, those of the deployment; mindspore: "
        "that of training and evaluation; onnxruntime: ONNX Runtime in Python",
    )
    precision: Literal["float32", "bfloat16"] = _key(
        "float32", "in which the runtime computes; bfloat16 with openvino"
    )
    device: Literal["CPU", "Ascend310", "Ascend"] = _key(
        "CPU", "device to measure; Ascend310 with the runtime lite, Ascend with mindspore"
    )
    device_id: int = _key(0, "number of the Ascend device", ge=0)

    # What is measured; these go into the table, which is only valid for them.
    threads: int = _key(1, "threads of the runtime on CPU", ge=1)
    batch_size: int = _key(1, "images per inference", ge=1)
    input_size: int | None = _key(
        None, "side of the square images, pixels; the space's own where omitted", ge=1
    )
    num_classes: int = _key(1000, "outputs of the classifier", ge=1)

    fit_networks: int = _key(
        22,
        "whole networks, beside the smallest and the largest, to which the table is fitted",
        ge=2,
    )
    max_rounds: int = _key(
        400,
        "rounds, in steps of 20, after which medians that are not stable are taken as they are",
        ge=1,
    )

    rescale: str | None = _key(
        None,
        "table to scale to the machine's present speed, by measuring its smallest and largest "
        "network again; replaced, unless out is given; a space that is not shipped is given by "
        "space",
    )

    # The table against networks that it was not made from.
    verify: int = _key(
        0,
        "measure this number of random networks, and the shipped ones, and compare them with the "
        "table",
        ge=0,
    )
    verify_draw: Literal["range", "uniform"] = _key(
        "range",
        "the random networks: one in each equal part of the range of multiply-adds, or uniform in "
        "their decisions, which lie closer together",
    )
    verify_arch: str | None = _key(
        None, "architecture files to measure too, with commas between them"
    )
    seed: int = _key(0, "seed of the random networks and of the order of measurement", ge=0)

    @model_validator(mode="after")
    def _rescale_or_verify(self) -> ProfileConfig:
        if self.rescale and self.verify:
            raise ConfigError("rescale and verify are both given; verify what rescale has written")
        given = self.model_fields_set
        for key in () if self.verify else ("verify_draw", "verify_arch"):
            if key in given:
                raise ConfigError(f"{key} is for --verify N, which is not given")
        for key in ("fit_networks",) if self.rescale else ():
            if key in given:
                raise ConfigError(f"{key} is for a new table, not for --rescale")
        return self
