import gzip
import hashlib
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.tasks import Batch, TaskSettings, VisionTask, make_task
from lowprec_eb.tasks.vision import _stratified_order

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def digits() -> VisionTask:
    return make_task(TaskSettings(), seed=0)


def write_mnist(folder: Path, labels: list[int], test_labels: list[int], side: int = 6) -> None:
    for prefix, values in (("train", labels), ("t10k", test_labels)):
        images = np.random.default_rng(len(values)).integers(1, 256, (len(values), side, side), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", np.array(values, np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def pixels(task: VisionTask, batch: Batch) -> Tensor:
    """The images of a batch before normalisation."""
    return (batch.inputs * task.std + task.mean).round().to(torch.uint8)


def rows(task: VisionTask, batches: list[Batch]) -> Counter[tuple[bytes, int]]:
    return Counter(
        (image.numpy().tobytes(), int(label))
        for batch in batches
        for image, label in zip(pixels(task, batch), batch.targets, strict=True)
    )


def test_digits_shapes_and_sizes(digits: VisionTask) -> None:
    assert (digits.name, digits.classes, digits.input_shape, digits.batch_size) == ("digits", 10, (1, 8, 8), 64)
    assert digits.samples == {"train": 1078, "validation": 270, "test": 449}
    batch = next(digits.batches(0))
    assert batch.samples == 64
    assert (batch.inputs.shape, batch.inputs.dtype) == ((64, 1, 8, 8), torch.float32)
    assert (batch.targets.shape, batch.targets.dtype) == ((64,), torch.int64)
    assert digits.splits["train"].images.dtype == torch.uint8


def test_splits_are_a_partition_of_the_digits(digits: VisionTask) -> None:
    together: Counter[tuple[bytes, int]] = Counter()
    for split in SPLITS:
        together += rows(digits, list(digits.eval_batches(split)))
    data = load_digits()
    images = data.images.astype(np.uint8)
    assert together == Counter((image.tobytes(), int(y)) for image, y in zip(images, data.target, strict=True))


def test_splits_are_stratified(digits: VisionTask) -> None:
    share = np.bincount(load_digits().target) / 1797
    for split in SPLITS:
        labels = digits.splits[split].labels
        counts = torch.bincount(labels).numpy()
        assert np.abs(counts - share * len(labels)).max() <= 1


def test_splits_do_not_depend_on_the_seed(digits: VisionTask) -> None:
    other = make_task(TaskSettings(), seed=1)
    for split in SPLITS:
        assert torch.equal(other.splits[split].images, digits.splits[split].images)
        assert torch.equal(other.splits[split].labels, digits.splits[split].labels)


def test_test_split_does_not_depend_on_what_is_done_to_the_training_rows(digits: VisionTask) -> None:
    other = make_task(TaskSettings(validation_fraction=0.5, max_train=300), seed=0)
    assert torch.equal(other.splits["test"].images, digits.splits["test"].images)


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_any_prefix_of_the_order_takes_the_same_share_of_every_class(labels: list[int]) -> None:
    array = np.array(labels)
    order = _stratified_order(array)
    assert sorted(order) == list(range(len(labels)))
    totals = np.bincount(array, minlength=5)
    present = totals > 0
    for length in range(len(labels) + 1):
        counts = np.bincount(array[order[:length]], minlength=5)[present]
        lowest_share, highest_share = (counts - 0.5) / totals[present], (counts + 0.5) / totals[present]
        assert lowest_share.max() <= highest_share.min() + 1e-12  # one share fits all classes after rounding


def test_the_order_is_shuffled_and_fixed() -> None:
    labels = np.array([0, 1] * 6)
    first = _stratified_order(labels)
    np.random.seed(123)  # noqa: NPY002  (the global state must not matter)
    assert np.array_equal(first, _stratified_order(labels))
    assert first.tolist() == [5, 8, 2, 3, 1, 4, 6, 9, 10, 11, 0, 7]  # splits of old runs stay valid


def test_normalised_by_the_training_split_alone(digits: VisionTask) -> None:
    inputs = torch.cat([batch.inputs for batch in digits.eval_batches("train")]).double()
    assert inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert inputs.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    test_mean = torch.cat([batch.inputs for batch in digits.eval_batches("test")]).mean().item()
    assert abs(test_mean) > 1e-4


def test_each_channel_has_its_own_statistics(tmp_path: Path) -> None:
    scales = np.array([1, 2, 4])
    images = np.random.default_rng(0).integers(0, 60, (40, 3, 32, 32)) * scales[None, :, None, None]
    data = b"".join(bytes([n % 10]) + image.astype(np.uint8).tobytes() for n, image in enumerate(images))
    for file in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / file).write_bytes(data)
    task = make_task(TaskSettings(data="cifar10", data_root=str(tmp_path)), seed=0)
    train = task.splits["train"].images.double()
    assert task.mean.shape == task.std.shape == (3, 1, 1)
    assert torch.allclose(task.mean.flatten().double(), train.mean((0, 2, 3)))
    assert torch.allclose(task.std.flatten().double(), train.std((0, 2, 3), correction=0))


def test_an_epoch_shows_every_training_image_once(digits: VisionTask) -> None:
    batches = list(digits.batches(5))
    assert [batch.samples for batch in batches] == [64] * 16 + [54]
    assert rows(digits, batches) == rows(digits, list(digits.eval_batches("train")))


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_batches_are_a_pure_function_of_seed_and_epoch(digits: VisionTask, augment: str) -> None:
    task = replace(digits, augment=augment, crop_padding=2, seed=4)
    torch.manual_seed(0)
    first = list(task.batches(3))
    state = torch.get_rng_state()
    next(task.batches(2))  # an interrupted epoch before
    torch.manual_seed(99)
    fresh = replace(digits, augment=augment, crop_padding=2, seed=4)
    for a, b in zip(first, fresh.batches(3), strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (task.batches(4), replace(task, seed=5).batches(3)):
        assert not torch.equal(next(other).targets, first[0].targets)


def test_the_mix_of_seed_and_epoch_is_the_documented_one(digits: VisionTask) -> None:
    digest = hashlib.sha256(b"lowprec_eb.batches:7:11").digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    order = torch.randperm(1078, generator=generator)
    targets = torch.cat([batch.targets for batch in replace(digits, seed=7).batches(11)])
    assert torch.equal(targets, digits.splits["train"].labels[order])


def test_augmentation_moves_training_images_and_pads_with_black(tmp_path: Path) -> None:
    write_mnist(tmp_path, [0, 1] * 40, [0, 1])  # no pixel of the images is 0
    root = str(tmp_path)
    plain = make_task(TaskSettings(data="mnist", data_root=root), seed=0)
    moved = make_task(TaskSettings(data="mnist", data_root=root, augment="crop", crop_padding=1), seed=0)
    original = torch.cat([pixels(plain, batch) for batch in plain.batches(0)])
    cropped = torch.cat([pixels(moved, batch) for batch in moved.batches(0)])
    assert not bool((original == 0).any())
    padded = (cropped == 0).flatten(1).any(1)
    assert 0.7 < padded.double().mean().item() < 1  # 8 of 9 corners show the border
    assert torch.equal(cropped[~padded], original[~padded])  # same order; the others are centred
    assert rows(moved, list(moved.eval_batches("train"))) == rows(plain, list(plain.eval_batches("train")))


def test_crop_flip_also_mirrors(digits: VisionTask) -> None:
    cropped = next(replace(digits, augment="crop", crop_padding=2).batches(0))
    flipped = next(replace(digits, augment="crop_flip", crop_padding=2).batches(0))
    same = (cropped.inputs == flipped.inputs).flatten(1).all(1)
    mirrored = (cropped.inputs.flip(-1) == flipped.inputs).flatten(1).all(1)
    assert bool((same | mirrored).all())  # the first batch has the same corners in both
    assert 15 < int(mirrored.sum()) < 49


@pytest.mark.parametrize(("batch_size", "split"), [(64, "train"), (1, "test"), (449, "test"), (2000, "validation")])
def test_batch_sizes_describe_the_batches(digits: VisionTask, batch_size: int, split: str) -> None:
    task = replace(digits, batch_size=batch_size)
    expected = Counter(batch.samples for batch in task.eval_batches(split))
    assert task.batch_sizes(split) == expected
    if split == "train":
        assert task.batch_sizes(split) == Counter(batch.samples for batch in task.batches(0)) == {64: 16, 54: 1}


def test_loss_is_the_mean_cross_entropy(digits: VisionTask) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    batch = next(digits.batches(0))
    loss = digits.loss(model, batch)
    log_probabilities = torch.log_softmax(model(batch.inputs), 1)
    assert loss.item() == pytest.approx(-log_probabilities[range(64), batch.targets].mean().item(), rel=1e-5)
    loss.backward()
    assert model[1].weight.grad is not None


@pytest.mark.parametrize("batch_size", [64, 100, 449])
def test_every_example_weighs_the_same(digits: VisionTask, batch_size: int) -> None:
    task = replace(digits, batch_size=batch_size)
    model = build_model(VGGSettings(), task.input_shape, task.classes, seed=0)
    loss, accuracy = task.evaluate(model, "test")
    whole = next(replace(digits, batch_size=449).eval_batches("test"))
    with torch.no_grad():
        logits = model.eval()(whole.inputs)
    assert loss == pytest.approx(F.cross_entropy(logits, whole.targets).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == whole.targets).double().mean().item()
    assert task.metric(model, "test") == accuracy


def test_metric_of_a_perfect_and_of_a_constant_model(digits: VisionTask) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(torch.full((x.shape[0],), 3), 10).float()

    threes = (digits.splits["validation"].labels == 3).double().mean().item()
    assert digits.metric(Constant(), "validation") == pytest.approx(threes)
    whole = next(replace(digits, batch_size=449).eval_batches("test"))
    lookup = {image.numpy().tobytes(): y for image, y in zip(whole.inputs, whole.targets, strict=True)}

    class Perfect(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.one_hot(torch.stack([lookup[image.numpy().tobytes()] for image in x]), 10).float()

    assert digits.metric(Perfect(), "test") == 1.0


def test_evaluation_leaves_the_model_as_it_was(digits: VisionTask) -> None:
    model = build_model(VGGSettings(), digits.input_shape, digits.classes, seed=0).train()
    model.features[1].eval()  # a frozen BatchNorm
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    digits.evaluate(model, "validation")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_modes_come_back_after_an_error(digits: VisionTask) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 10)).train()
    with pytest.raises(RuntimeError):
        digits.evaluate(model, "test")
    assert all(module.training for module in model.modules())


def test_a_small_vgg_learns_the_digits(digits: VisionTask) -> None:
    model = build_model(VGGSettings(), digits.input_shape, digits.classes, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for batch in digits.batches(epoch):
            optimizer.zero_grad()
            digits.loss(model, batch).backward()
            optimizer.step()
    assert digits.metric(model, "test") > 0.9


def test_file_data_keeps_its_own_test_set(tmp_path: Path) -> None:
    write_mnist(tmp_path, [n % 5 for n in range(50)], [0, 1, 2, 3] * 3)
    whole = make_task(TaskSettings(data="mnist", data_root=str(tmp_path)), seed=0)
    assert whole.samples == {"train": 40, "validation": 10, "test": 12}
    assert torch.bincount(whole.splits["validation"].labels).tolist() == [2] * 5
    small = make_task(TaskSettings(data="mnist", data_root=str(tmp_path), max_train=20, max_test=8), seed=0)
    assert small.samples == {"train": 16, "validation": 4, "test": 8}
    assert torch.bincount(small.splits["test"].labels).tolist() == [2] * 4
    assert rows(small, list(small.eval_batches("test"))) <= rows(whole, list(whole.eval_batches("test")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "imagenet"}, "data must be one of digits, cifar10"),
        ({"augment": "mixup"}, "augment must be one of none, crop, crop_flip"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, got 0"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"crop_padding": 0}, "crop_padding must be a whole number of 1 or more"),
        ({"validation_fraction": 0.0}, "validation_fraction must lie strictly between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"test_fraction": float("nan")}, "test_fraction"),
        ({"max_train": 1}, "max_train must be a whole number of 2 or more"),
        ({"max_test": 0}, "max_test must be a whole number of 1 or more"),
    ],
)
def test_settings_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation_fraction": 0.0001}, "validation split of 'digits' is empty"),
        ({"test_fraction": 0.0001}, "test split of 'digits' is empty"),
        ({"max_train": 2, "validation_fraction": 0.9}, "train split of 'digits' is empty"),
        ({"augment": "crop", "crop_padding": 8}, r"crop_padding must be smaller.*1 \.\. 7, got 8"),
    ],
)
def test_settings_that_do_not_fit_the_data(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_task(TaskSettings(**values), seed=0)  # type: ignore[arg-type]


def test_constant_images_cannot_be_normalised(tmp_path: Path) -> None:
    write_mnist(tmp_path, [0, 1] * 5, [0, 1])
    images = np.full((10, 6, 6), 7, np.uint8)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", *images.shape)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    with pytest.raises(ValueError, match=r"channel 0 of the training images is constant \(7\)"):
        make_task(TaskSettings(data="mnist", data_root=str(tmp_path)), seed=0)


def test_unknown_split_and_negative_epoch(digits: VisionTask) -> None:
    for call in (digits.batch_sizes, digits.eval_batches):
        with pytest.raises(ValueError, match="unknown split 'valid'; this task has train, validation, test"):
            call("valid")
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        digits.batches(-1)
