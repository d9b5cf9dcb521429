"""From folders of images and masks to a network that segments."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("sklearn", reason="the digits and the photographs")
Image = pytest.importorskip("PIL.Image", reason="masks and pictures")
if not hasattr(tf.keras, "ops"):
    pytest.skip("the scripts are for Keras 3", allow_module_level=True)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import digits_on_photographs  # noqa: E402
import train_segmentation  # noqa: E402
from recipes import runs  # noqa: E402
from recipes.detection_input import fitted_size  # noqa: E402
from recipes.pictures import color_of, draw_classes  # noqa: E402
from recipes.problems import DataError  # noqa: E402
from recipes.segmentation_data import read_mask, read_masks, segmentation_batches  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::tf_deformable.analysis.OffsetWarning")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    digits_on_photographs.write(folder, training=8, validation=5, seed=1, max_scans=200)
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_segmentation.py", *map(str, arguments)])
        runs.command(train_segmentation.main)
        return capsys.readouterr().out

    yield run
    tf.keras.mixed_precision.set_global_policy("float32")


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_masks_of_a_palette_are_indices(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(labels)
    image.putpalette([value for number in range(256) for value in (number, 0, 255 - number)])
    image.save(tmp_path / "palette.png")
    Image.fromarray(labels).save(tmp_path / "grey.png")
    Image.fromarray(labels > 5).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "bits.png"), labels > 5)


def test_what_is_wrong_is_skipped_and_named(digits, tmp_path):
    shutil.copytree(digits / "train", tmp_path / "images")
    shutil.copytree(digits / "train_masks", tmp_path / "masks")
    masks = [tmp_path / "masks" / f"{number:05d}.png" for number in range(1, 7)]
    height, width = read_mask(masks[0]).shape
    masks[0].unlink()
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(masks[1])
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(masks[2])
    labels = read_mask(masks[3]).copy()
    size = labels.shape
    labels[0, :3] = 11, 200, 255
    Image.fromarray(labels).save(masks[3])
    data = masks[4].read_bytes()
    masks[4].write_bytes(data[: len(data) // 2])
    (tmp_path / "images" / "00006.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "images" / "notes.txt").write_text("not an image, and not named one")
    found = read_masks(tmp_path / "images", tmp_path / "masks", 11, 255)
    assert [image.path.stem for image in found.images] == ["00007", "00008"]
    sizes = size_of(tmp_path / "images" / "00002.jpg")
    assert found.problems.found == {
        "images without a mask": [
            "00001.png (00001.png: it is not there)",
            "00003.png (00003.png: it has the mode RGB, not one channel of 8 bits)",
            "00005.png (00005.png: it cannot be read)",
        ],
        "masks of another size than their images": [f"00002.png (9x8, not {sizes[1]}x{sizes[0]})"],
        "masks with values that are no class (0 to 10) and not 255": ["00004.png (11, 200)"],
        "images that cannot be read": ["00006.jpg (it is damaged)"],
    }
    assert (height, width) != size  # they do differ
    with pytest.raises(DataError, match="there is no image with a mask in"):
        read_masks(tmp_path / "images", digits / "val", 11, 255)
    with pytest.raises(DataError, match="there is no JPEG or PNG file"):
        read_masks(tmp_path, tmp_path, 11, 255)


def test_masks_follow_their_images(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    sizes = [(40, 90), (90, 40), (30, 30)]
    for number, size in enumerate(sizes):
        mask = np.zeros(size, np.uint8)
        y, x = rng.integers(2, 12, 2)
        mask[y : y + 15, x : x + 15] = 2
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
        pixels = np.repeat(120 * mask[..., np.newaxis], 3, axis=-1)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    data = read_masks(tmp_path / "images", tmp_path / "masks", 3, 255)
    mirrored = set()
    for training in (True, False):
        batches = segmentation_batches(data.images, (48, 64), 3, 255, training=training, seed=2)
        for images, masks in batches.repeat(6 if training else 1):
            assert masks.shape == (3, 48, 64) and masks.dtype == tf.int32
            for image, mask in zip(images.numpy(), masks.numpy(), strict=True):
                # But for the pixels at the edge, which are mixed.
                bright = image[..., 0] > 200
                assert np.all(mask[bright] == 2) and bright.sum() > 0.6 * np.sum(mask == 2)
                padded = mask == 255
                assert not np.any(image[padded])
                height, width = min(
                    (fitted_size(size, (48, 64)) for size in sizes),
                    key=lambda size: abs(size[0] * size[1] - np.sum(~padded)),
                )
                assert np.sum(~padded) == height * width
                if width < 64:
                    mirrored.add((training, bool(padded[0, 0])))
    assert mirrored == {(True, True), (True, False), (False, False)}


def test_classes_are_drawn_on_the_image():
    image = np.full((4, 5, 3), 100, np.uint8)
    labels = np.zeros((4, 5), np.uint8)
    labels[1], labels[2] = 3, 255
    drawn = draw_classes(image, labels)
    np.testing.assert_array_equal(drawn[[0, 3]], image[[0, 3]])
    expected = np.round(0.35 * 100 + 0.65 * np.array(color_of(3)))
    np.testing.assert_array_equal(drawn[1], np.tile(expected, (5, 1)))
    assert np.ptp(drawn[2]) == 0


def test_from_masks_to_a_network_and_on(digits, tmp_path, command):
    run = tmp_path / "run"
    options = [
        *("train", "--images", digits / "train", "--masks", digits / "train_masks"),
        *("--val-images", digits / "val", "--val-masks", digits / "val_masks", "--classes", 11),
        *("--output", run, "--backbone", "small", "--size", "64x80", "--batch", 4),
    ]
    out = command(*options, "--epochs", 1, "--no-export")
    assert "8 images with masks" in out and "on 5 images: mean IoU" in out
    out = command(*options, "--epochs", 2, "--resume", "--precision", "mixed_bfloat16")
    assert "Going on after epoch 1, from last-0001.keras" in out
    assert {path.name for path in run.glob("*.keras")} == {"best.keras", "last-0002.keras"}
    exported = tf.saved_model.load(str(run / "exported"))
    assert exported.serve(tf.zeros([1, 64, 80, 3])).shape == (1, 64, 80, 11)

    command("predict", "--run", run, "--images", digits / "val", "--output", tmp_path / "drawn")
    masks = sorted((tmp_path / "drawn").glob("*-mask.png"))
    assert len(masks) == 5
    for mask, image in zip(masks, sorted((digits / "val").iterdir()), strict=True):
        assert size_of(mask) == size_of(image)
    with pytest.raises(SystemExit, match="--ignored must be from 11 to 255"):
        command(*options, "--ignored", 5)
