"""From a COCO file to a detector: what is read, skipped and refused, and the whole of it once."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("sklearn", reason="the digits and the photographs")
pytest.importorskip("pycocotools", reason="the evaluation")
Image = pytest.importorskip("PIL.Image", reason="the pictures")
ImageOps = pytest.importorskip("PIL.ImageOps")
if not hasattr(tf.keras, "ops"):
    pytest.skip("the scripts are for Keras 3", allow_module_level=True)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import digits_on_photographs  # noqa: E402
import train_coco  # noqa: E402
from recipes import runs  # noqa: E402
from recipes.backbones import build_backbone  # noqa: E402
from recipes.coco_file import Category, Picture, read_coco  # noqa: E402
from recipes.detection_evaluation import CocoEvaluation  # noqa: E402
from recipes.detection_input import fitted_size, image_batches, to_original  # noqa: E402
from recipes.detection_input import training_batches as batches_of  # noqa: E402
from recipes.evaluation import evaluate, precision_at, results_of  # noqa: E402
from recipes.image_files import decode, find_images, image_size  # noqa: E402
from recipes.pictures import draw_boxes  # noqa: E402
from recipes.problems import DataError  # noqa: E402
from recipes.segmentation_data import read_mask  # noqa: E402

# What a few steps have not taught yet; an own test of the package says when it is said.
pytestmark = pytest.mark.filterwarnings("ignore::tf_deformable.analysis.OffsetWarning")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    digits_on_photographs.write(folder, training=12, validation=6, seed=1, max_scans=200)
    return folder


@pytest.fixture
def policy():
    yield
    tf.keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def command(monkeypatch, policy, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_coco.py", *map(str, arguments)])
        runs.command(train_coco.main)
        return capsys.readouterr().out

    return run


def content_of(folder, name="train"):
    return json.loads((folder / f"{name}.json").read_text())


def read(tmp_path, digits, content, **arguments):
    path = tmp_path / "changed.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(path, digits / "train", **arguments)


# --- The data set --------------------------------------------------------------------------------


def test_boxes_of_the_data_set_are_those_of_the_masks(digits):
    content = content_of(digits)
    ids = [category["id"] for category in content["categories"]]
    assert np.ptp(np.diff(ids)) > 0  # gaps
    sizes = {(image["height"], image["width"]) for image in content["images"]}
    assert len(sizes) > 5 and len(content["annotations"]) > 12
    assert {Path(image["file_name"]).suffix for image in content["images"]} == {".jpg", ".png"}
    for image in content["images"]:
        mask = read_mask(digits / "train_masks" / f"{image['id']:05d}.png")
        assert mask.shape == (image["height"], image["width"])
        found = np.zeros_like(mask)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, width, height = annotation["bbox"]
                digit = ids.index(annotation["category_id"])
                found[y : y + height, x : x + width] = digit + 1
        assert np.all((mask == 0) | (mask == found))


# --- Annotation files ----------------------------------------------------------------------------


def test_a_file_without_faults_is_read_whole(digits):
    data = read_coco(digits / "train.json", digits / "train")
    content = content_of(digits)
    assert not data.problems.found
    assert len(data.pictures) == 12
    assert sum(len(picture.labels) for picture in data.pictures) == len(content["annotations"])
    assert any(not len(picture.labels) for picture in data.pictures)  # kept: background
    assert [category.name for category in data.categories] == [str(digit) for digit in range(10)]
    ids = [category.id for category in data.categories]
    by_image = {picture.id: picture for picture in data.pictures}
    for annotation in content["annotations"]:
        picture = by_image[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        (row,) = np.flatnonzero(np.all(picture.boxes == [y, x, y + height, x + width], axis=1))
        assert ids[picture.labels[row]] == annotation["category_id"]
    truth = data.ground_truth()
    assert [a["bbox"] for a in truth["annotations"]] == [a["bbox"] for a in content["annotations"]]


def test_what_is_wrong_is_skipped_and_named(digits, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    content = content_of(digits)
    clean = read_coco(digits / "train.json", digits / "train")
    for record in content["images"]:
        (folder / record["file_name"]).write_bytes(
            (digits / "train" / record["file_name"]).read_bytes()
        )
    whole = next(p for p in clean.pictures if p.path.suffix == ".jpg" and len(p.labels))
    height, width = whole.size
    jpeg = whole.path.read_bytes()
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "picture.bmp")
    (folder / "bmp.jpg").write_bytes((folder / "picture.bmp").read_bytes())
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "turned.png")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "outside.png")
    Image.fromarray(np.full((8, 9, 4), 100, np.uint8)).save(folder / "transparent.png")
    Image.fromarray(np.full((8, 9), 100, np.uint8)).save(folder / "grey.jpg")
    names = ["cut.jpg", "text.png", "empty.jpg", "bmp.jpg", "missing.jpg", "../outside.png"]
    content["images"] += [{"id": 100 + n, "file_name": name} for n, name in enumerate(names)]
    content["images"] += [
        {"id": 200, "file_name": "turned.png", "height": 9, "width": 8},
        {"id": 201, "file_name": "transparent.png"},
        {"id": 202, "file_name": "grey.jpg", "height": 8, "width": 9},
    ]
    first = content["categories"][0]["id"]
    good = {"image_id": whole.id, "category_id": first, "bbox": [1, 1, 5, 5]}
    changes = [
        {"bbox": [3, 3, 0, 5]},
        {"bbox": [3, 3, 5, -1]},
        {"bbox": []},
        {"bbox": None},
        {"bbox": [1, 1, float("nan"), 2]},
        {"bbox": ["1", 1, 2, 2]},
        {"bbox": [width + 1, 0, 5, 5]},
        {"bbox": [-9, 0, 9, 5]},
        {"image_id": 999},
        {"category_id": 999},
        {"image_id": 100},  # of a file that cannot be read: that has been said
        {"iscrowd": 1, "bbox": [0, 0, 30, 30]},
        {"bbox": [-5, -5, 10.5, 8]},  # partly outside
        {"bbox": [width - 3, height - 2, 50, 50]},
    ]
    content["annotations"] += [
        {**good, "id": 1000 + number, **change} for number, change in enumerate(changes)
    ]
    content["annotations"].append("nothing")
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(content))
    data = read_coco(path, folder)

    found = data.problems.found
    assert found == {
        "images outside of the folder": ["../outside.png"],
        "images that cannot be read": [
            "cut.jpg (it is damaged)",
            "text.png (neither JPEG nor PNG)",
            "empty.jpg (the file is empty)",
            "bmp.jpg (neither JPEG nor PNG)",
            "missing.jpg (No such file or directory)",
        ],
        "images of another size than the file says": ["turned.png (8x9, not 9x8)"],
        "annotations of images that are not in the file": ["1008"],
        "annotations of categories that are not in the file": ["1009"],
        "annotations that are no objects": [f"number {len(content['annotations']) - 1}"],
        "boxes without area": ["1000", "1001"],
        "annotations without a box": ["1002", "1003"],
        "boxes that are not four numbers": ["1004", "1005"],
        "boxes outside of their image": ["1006", "1007"],
    }
    text = str(data)
    assert "5  images that cannot be read: cut.jpg (it is damaged), text.png" in text
    assert "1 crowds, not trained on" in text
    assert {p.path.name for p in data.pictures} == {
        *(record["file_name"] for record in content["images"][:12]), "transparent.png", "grey.jpg"
    }  # fmt: skip
    changed = next(picture for picture in data.pictures if picture.id == whole.id)
    np.testing.assert_array_equal(changed.boxes[: len(whole.boxes)], whole.boxes)
    np.testing.assert_array_equal(
        changed.boxes[len(whole.boxes) :],
        np.array([[0, 0, 3, 5.5], [height - 2, width - 3, height, width]], np.float32),
    )
    assert [a["iscrowd"] for a in changed.annotations].count(1) == 1
    # And all of it goes through the input.
    for images, targets in batches_of(data.pictures, (48, 48), 5):
        assert np.all(np.isfinite(images)) and np.all(np.isfinite(targets["boxes"]))


JPEG = 6  # by so much two decoders differ, TensorFlow's and Pillow's


def colors(height=6, width=9):
    """Smooth colours, which JPEG keeps."""
    rows, columns = np.mgrid[:height, :width]
    channels = [40 + 8 * rows + 3 * columns, 200 - 8 * columns, 60 + 4 * rows + 5 * columns]
    return np.stack(channels, axis=-1).astype(np.uint8)


def save(path, image, **arguments):
    Image.fromarray(image).save(path, **arguments)


def test_images_of_all_kinds_have_their_colours(tmp_path):
    rgb, grey = colors(), colors()[..., 0]
    expected = {"rgb.png": rgb}
    save(tmp_path / "rgb.png", rgb)
    for mode in ("L", "LA", "RGBA", "1"):
        Image.fromarray(grey).convert(mode).save(tmp_path / f"{mode}.png")
        expected[f"{mode}.png"] = np.asarray(Image.open(tmp_path / f"{mode}.png").convert("RGB"))
    save(tmp_path / "16 bits.png", grey.astype(np.uint16) * 257)
    expected["16 bits.png"] = np.stack([grey] * 3, axis=-1)
    Image.fromarray(rgb).quantize(8).save(tmp_path / "palette.png", transparency=3)
    expected["palette.png"] = np.asarray(Image.fromarray(rgb).quantize(8).convert("RGB"))
    save(tmp_path / "1x1.png", rgb[:1, :1])
    expected["1x1.png"] = rgb[:1, :1]
    save(tmp_path / "1x1.jpg", rgb[:1, :1], quality=100)
    expected["1x1.jpg"] = rgb[:1, :1]
    large = colors(16, 24)
    for name, mode in (("Bäume, 木.jpg", "RGB"), ("cmyk.JPG", "CMYK"), ("grey.jpeg", "L")):
        Image.fromarray(large).convert(mode).save(tmp_path / name, quality=100, subsampling=0)
        expected[name] = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    assert {path.name for path in find_images([tmp_path])} == set(expected)
    for name, pixels in expected.items():
        found = decode((tmp_path / name).read_bytes())
        assert found.dtype == tf.uint8
        np.testing.assert_allclose(
            found, pixels, atol=JPEG if "j" in name.lower() else 0, err_msg=name
        )
        assert image_size(tmp_path / name) == pixels.shape[:2]
        (image,) = image_batches([tmp_path / name], [pixels.shape[:2]], (32, 32), 1)
        assert image.shape == (1, 32, 32, 3) and np.any(image > 30)


@pytest.mark.parametrize("orientation", range(10))
def test_photographs_are_turned_as_their_camera_says(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "photo.jpg", colors(16, 24), quality=100, subsampling=0, exif=exif)
    with Image.open(tmp_path / "photo.jpg") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_allclose(decode((tmp_path / "photo.jpg").read_bytes()), expected, atol=JPEG)
    assert image_size(tmp_path / "photo.jpg") == expected.shape[:2]
    (batch,) = image_batches([tmp_path / "photo.jpg"], [expected.shape[:2]], expected.shape[:2], 1)
    np.testing.assert_allclose(batch[0], expected, atol=JPEG)


def test_sizes_are_those_of_photographs_as_they_are_seen(digits, tmp_path):
    folder, exif = tmp_path / "images", Image.Exif()
    folder.mkdir()
    exif[0x0112] = 6
    for name in ("seen.jpg", "stored.jpg"):
        save(folder / name, colors(16, 24), exif=exif)
    content = {
        "images": [
            {"id": 1, "file_name": "seen.jpg", "height": 24, "width": 16},
            {"id": 2, "file_name": "stored.jpg", "height": 16, "width": 24},
        ],
        "categories": [{"id": 1, "name": "one"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [2, 18, 9, 6]}],
    }
    (tmp_path / "photos.json").write_text(json.dumps(content))
    data = read_coco(tmp_path / "photos.json", folder)
    assert [picture.size for picture in data.pictures] == [(24, 16)]
    np.testing.assert_array_equal(data.pictures[0].boxes, [[18, 2, 24, 11]])
    assert data.problems.found == {
        "images of another size than the file says": ["stored.jpg (24x16, not 16x24)"]
    }


def test_odd_records_are_named(digits, tmp_path):
    content = content_of(digits)
    first, second = content["images"][:2]
    first["height"], first["width"] = str(first["height"]), first["width"]
    good = content["annotations"][-1]
    changes = [
        {"image_id": [1]},
        {"image_id": None},
        {"image_id": str(good["image_id"])},
        {"category_id": {"id": 1}},
        {"category_id": True},
        {"bbox": {"x": 1}},
        {"bbox": [1, 1, 1e400, 2]},
        {"bbox": [True, 1, 2, 2]},
        {"iscrowd": 1, "segmentation": {"counts": [3, 9, 20], "size": [4, 8]}},
    ]
    content["annotations"] = [
        *content["annotations"],
        *({**good, "id": 1000 + number, **change} for number, change in enumerate(changes)),
    ]
    content["info"] = {"year": "ä"}
    # Of a Windows editor; JSON has no infinity, but Python's does.
    data = read(tmp_path, digits, "\ufeff" + json.dumps(content))
    size = (int(first["height"]), first["width"])
    text = f"{first['file_name']} ({size[0]}x{size[1]}, not '{size[0]}'x{size[1]})"
    assert data.problems.found == {
        "annotations of images that are not in the file": ["1000", "1001", "1002"],
        "annotations of categories that are not in the file": ["1003", "1004"],
        "annotations without a box": ["1005"],
        "boxes that are not four numbers": ["1006", "1007"],
        "images of another size than the file says": [text],
    }
    crowds = [a for p in data.pictures for a in p.annotations if a["iscrowd"]]
    assert len(crowds) == 1 and second["id"] in {picture.id for picture in data.pictures}


def test_images_are_in_the_folder_by_their_names(digits, tmp_path, monkeypatch):
    """Absolute names are, too, if they lead there; and links to images that are elsewhere."""
    folder = tmp_path / "images"
    (folder / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    content = content_of(digits)
    outside = content["images"][3]["file_name"]
    sources = [(digits / "train" / each["file_name"]) for each in content["images"]]
    places = [
        folder / sources[0].name,
        folder / "inside" / sources[1].name,
        folder / sources[2].name,
    ]
    for source, place in zip(sources, places, strict=False):
        place.symlink_to(source)
    names = [
        str(places[0]), f"inside/{places[1].name}", f"./inside/../{places[2].name}",
        str(digits / "train" / outside), f"inside/../../{outside}", "", "\0.png", "a" * 300,
    ]  # fmt: skip
    for record, name in zip(content["images"], names, strict=False):
        record["file_name"] = name
    content["images"] = content["images"][: len(names)]
    (tmp_path / "names.json").write_text(json.dumps(content))
    data = read_coco(Path("names.json"), Path("images"))
    assert [picture.id for picture in data.pictures] == [r["id"] for r in content["images"][:3]]
    assert data.problems.found["images outside of the folder"] == names[3:5]
    unreadable = data.problems.found["images that cannot be read"]
    assert [text.split(" (")[0] for text in unreadable] == names[5:]


def without(content, name):
    return {key: value for key, value in content.items() if key != name}


REFUSED = {
    "is not JSON": lambda content: "{",
    "is no COCO file of objects.*annotations missing": lambda c: without(c, "annotations"),
    "must have the lists": lambda content: [],
    "images must be a list, got dict": lambda content: {**content, "images": {}},
    "there are no categories": lambda content: {**content, "categories": []},
    "a category must have an id, an integer": lambda c: {**c, "categories": [{"name": "a"}]},
    "two categories have the id 1": lambda c: {
        **c, "categories": [*c["categories"], {"id": 1, "name": "other"}]
    },
    "two categories are called '0'": lambda c: {
        **c, "categories": [*c["categories"], {"id": 500, "name": "0"}]
    },
    "an image must have an id, an integer, and a file_name": lambda c: {
        **c, "images": [*c["images"], {"id": 77}]
    },
    "two images have the id 1: again.jpg": lambda c: {
        **c, "images": [*c["images"], {"id": 1, "file_name": "again.jpg"}]
    },
    "there is no image with an object": lambda content: {**content, "annotations": []},
    "what was skipped:\n +12  images that cannot be read": lambda c: {
        **c, "images": [{**image, "file_name": "gone.jpg"} for image in c["images"]]
    },
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_nothing_can_be_made_of_is_refused(message, digits, tmp_path):
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(tmp_path, digits, REFUSED[message](copy.deepcopy(content_of(digits))))


def test_another_file_may_give_other_ids_to_the_same_categories(digits, tmp_path):
    data = read_coco(digits / "train.json", digits / "train")
    content = content_of(digits)
    renamed = {category["id"]: 900 - category["id"] for category in content["categories"]}
    for category in content["categories"]:
        category["id"] = renamed[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = renamed[annotation["category_id"]]
    content["categories"].append({"id": 1, "name": "letter"})
    other = read(tmp_path, digits, content, categories=data.categories)
    for one, two in zip(data.pictures, other.pictures, strict=True):
        np.testing.assert_array_equal(one.labels, two.labels)
    assert other.problems.found == {"categories that the training has not": ["letter"]}


# --- Input ---------------------------------------------------------------------------------------


def bright_rectangles(folder, sizes):
    """Images with a bright rectangle each, and its box."""
    rng = np.random.default_rng(0)
    pictures = []
    for number, (height, width) in enumerate(sizes):
        y, x = rng.integers(2, height // 3), rng.integers(2, width // 3)
        y2, x2 = rng.integers(height // 2, height - 2), rng.integers(width // 2, width - 2)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y:y2, x:x2] = 255
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        boxes = np.array([[y, x, y2, x2]], np.float32)
        labels = np.array([number], np.int32)
        pictures.append(Picture(number, path, (height, width), boxes, labels, ()))
    return pictures


def test_boxes_follow_their_images(tmp_path):
    sizes = [(40, 90), (90, 40), (30, 30), (200, 333), (64, 96), (17, 500)]
    pictures = bright_rectangles(tmp_path, sizes)
    batches = batches_of(pictures, (64, 96), 2, seed=3).repeat(4)
    mirrored = set()
    for images, targets in batches:
        assert images.shape == (2, 64, 96, 3) and images.dtype == tf.float32
        for image, box, label in zip(images, targets["boxes"], targets["labels"], strict=True):
            ink = np.asarray(image)[..., 0] > 127
            rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
            found = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            np.testing.assert_allclose(box[0], found, atol=1.01)
            number = int(label[0])
            height, width = fitted_size(sizes[number], (64, 96))
            start = pictures[number].boxes[0, 1] * width / sizes[number][1]
            mirrored.add((number, abs(float(box[0, 1]) - start) > 1.5))
    assert {flag for _, flag in mirrored} == {False, True}
    images, _ = next(iter(batches_of(pictures, (64, 96), 6, mirror=False)))
    assert not np.any(images[:, :, -1] > 127) and not np.any(images[:, -1] > 127)  # where padded


def test_batches_are_filled_up(tmp_path):
    pictures = bright_rectangles(tmp_path, [(40, 50)] * 4)
    none = Picture(9, pictures[0].path, (40, 50), np.zeros((0, 4), "f"), np.zeros(0, "i"), ())
    (batch,) = batches_of([none, pictures[1], none], (32, 32), 3)
    rows = {tuple(row) for row in batch[1]["labels"].numpy()}
    assert rows == {(-1,), (1,)}
    assert np.all(batch[1]["boxes"].numpy()[batch[1]["labels"] == -1] == 0)
    (batch,) = batches_of([none, none], (32, 32), 2)  # no object at all
    assert batch[1]["boxes"].shape == (2, 0, 4)
    assert int(batches_of(pictures, (32, 32), 3).cardinality()) == 1
    assert int(batches_of(pictures, (32, 32), 8).cardinality()) == 1  # fewer than a batch


def test_boxes_return_to_their_files(tmp_path):
    sizes = [(40, 90), (17, 500)]
    pictures = bright_rectangles(tmp_path, sizes)
    (images,) = image_batches([p.path for p in pictures], sizes, (64, 96), 2)
    for image, picture in zip(images, pictures, strict=True):
        ink = np.asarray(image)[..., 0] > 127
        rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
        found = [[rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]]
        back = to_original(found, picture.size, (64, 96))
        factor = picture.size[1] / fitted_size(picture.size, (64, 96))[1]
        np.testing.assert_allclose(back, picture.boxes, atol=1.01 * max(factor, 1.0))
    np.testing.assert_array_equal(to_original([[-5, 0, 900, 900]], (40, 90), (64, 96)),
                                  [[0, 0, 40, 90]])  # fmt: skip


# --- Evaluation ----------------------------------------------------------------------------------


def detections_of(picture):
    return {
        "boxes": picture.boxes,
        "scores": np.full(len(picture.labels), 0.9),
        "classes": picture.labels,
        "counts": len(picture.labels),
    }


def test_perfect_and_no_detections(digits):
    data = read_coco(digits / "train.json", digits / "train")
    ids = [category.id for category in data.categories]
    truth = data.ground_truth()
    perfect = [r for p in data.pictures for r in results_of(p.id, detections_of(p), ids)]
    numbers = evaluate(truth, perfect)
    assert numbers["AP"] == numbers["AP50"] == numbers["AR100"] == pytest.approx(1.0)
    assert evaluate(truth, [])["AP"] == 0.0
    there = {annotation["category_id"] for annotation in truth["annotations"]}
    assert precision_at(truth, perfect, 0.5) == pytest.approx(dict.fromkeys(there, 1.0))
    moved = [{**r, "bbox": [r["bbox"][0] + 50, *r["bbox"][1:]]} for r in perfect]
    assert evaluate(truth, moved)["AP50"] < 0.1


def test_what_is_found_in_a_crowd_is_not_held_against_it(digits, tmp_path):
    content = content_of(digits)
    first = content["annotations"][0]
    crowd = {**first, "id": 5000, "iscrowd": 1, "bbox": [0, 0, 60, 60], "image_id": 2}
    data = read(tmp_path, digits, {**content, "annotations": [*content["annotations"], crowd]})
    ids = [category.id for category in data.categories]
    perfect = [r for p in data.pictures for r in results_of(p.id, detections_of(p), ids)]
    inside = {**perfect[0], "image_id": 2, "bbox": [20, 20, 9, 9], "score": 0.99}
    assert evaluate(data.ground_truth(), [*perfect, inside])["AP"] == pytest.approx(1.0)
    clean = read(tmp_path, digits, content)
    assert evaluate(clean.ground_truth(), [*perfect, inside])["AP"] < 0.99


def test_boxes_are_drawn_where_they_are():
    image = np.full((60, 80, 3), 40, np.uint8)
    boxes = np.array([[10, 20, 30, 50]], np.float32)
    drawn = draw_boxes(image, boxes, [""], [(250, 0, 0)])
    red = np.all(drawn == (250, 0, 0), axis=-1)
    expected = np.zeros((60, 80), bool)
    expected[10:30, 20:50] = True
    expected[11:29, 21:49] = False
    np.testing.assert_array_equal(red, expected)
    assert np.any(draw_boxes(image, boxes, ["digit 0.93"], [(250, 0, 0)]) != drawn)
    # A text at the edges stays inside.
    corner = np.array([[0, 70, 60, 80]], np.float32)
    assert draw_boxes(image, corner, ["a long name 0.93"], [(0, 0, 250)]).shape == image.shape


# --- Backbones -----------------------------------------------------------------------------------


def test_backbones_of_keras_scale_images_themselves():
    images = np.random.default_rng(0).uniform(0, 255, [1, 64, 64, 3]).astype(np.float32)
    backbone = build_backbone("MobileNetV2")
    network = backbone.get_layer(backbone.name)
    expected = network(tf.keras.applications.mobilenet_v2.preprocess_input(images.copy()))
    np.testing.assert_allclose(backbone(images), expected, atol=1e-4)


@pytest.mark.parametrize(
    "name, weights, message",
    [
        ("ResNet5", None, "--backbone must be .* got 'ResNet5'. There are .*ResNet50"),
        ("MobileNetV2", "nowhere.h5", "--weights must be none, imagenet or a file"),
        ("small", "imagenet", "small has no weights"),
        ("keras_hub:/nowhere", None, "keras_hub"),
    ],
)
def test_backbones_that_are_none_are_refused(name, weights, message):
    with pytest.raises(DataError, match=message):
        build_backbone(name, weights)


@pytest.mark.filterwarnings("ignore")  # KerasHub's own
def test_backbones_of_keras_hub(tmp_path):
    hub = pytest.importorskip("keras_hub").models
    network = hub.ResNetBackbone(
        [64], [7], [64, 64], [1, 1], [1, 2], "basic_block", image_shape=(None, None, 3)
    )
    network.save_to_preset(tmp_path / "preset")
    backbone = build_backbone(f"keras_hub:{tmp_path / 'preset'}", "preset")
    images = np.random.default_rng(0).uniform(0, 255, [1, 64, 64, 3]).astype(np.float32)
    found = backbone(images)["output"]
    np.testing.assert_allclose(found, network(images / 255), rtol=1e-3, atol=1e-5)
    assert {"P2", "P3", "output"} == set(backbone(images))


# --- The commands --------------------------------------------------------------------------------


def options_of(digits, output, *others):
    return [
        *("train", "--annotations", digits / "train.json", "--images", digits / "train"),
        *("--output", output, "--backbone", "small", "--size", "64x80", "--batch", 4),
        *("--head-units", 16, "--channels", 8, "--proposals", 16, *others),
    ]


def tags_of(folder):
    """Returns the tags of the event files in a folder, and how often each is there."""
    tags = {}
    for path in folder.rglob("events.*"):
        for record in tf.data.TFRecordDataset([str(path)]):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                tags.setdefault(value.tag, []).append(value)
    return tags


def test_from_a_coco_file_to_a_detector_and_on(digits, tmp_path, command):
    run = tmp_path / "run"
    val = ["--val-annotations", digits / "val.json", "--val-images", digits / "val"]
    out = command(*options_of(digits, run, *val, "--epochs", 1, "--no-export"))
    assert "12 images with" in out and "Epoch 1: AP " in out and "on 6 images" in out
    assert json.loads((run / "state.json").read_text())["model"] == "last-0001.keras"
    iterations = runs.Run(run).load("last-0001.keras").optimizer.iterations
    assert int(iterations) == 3

    out = command(*options_of(digits, run, *val, "--epochs", 2, "--resume"))
    assert "Going on after epoch 1, from last-0001.keras" in out and "Epoch 2: AP " in out
    assert {path.name for path in run.glob("*.keras")} == {"best.keras", "last-0002.keras"}
    assert int(runs.Run(run).load("last-0002.keras").optimizer.iterations) == 6
    again = command(*options_of(digits, run, *val, "--epochs", 2, "--resume", "--no-export"))
    assert "has 2 epochs already" in again

    tags = tags_of(run / "logs")
    assert {"loss", "val_AP", "learning_rate", "detections/0"} <= set(tags)
    assert any(tag.startswith("offsets/") and tag.endswith("/mean") for tag in tags)
    assert len(tags["val_AP"]) == len(tags["detections/0"]) == 2
    _, _, png = tags["detections/0"][-1].tensor.string_val
    assert tf.io.decode_png(png).shape[-1] == 3

    exported = tf.saved_model.load(str(run / "exported"))
    model = runs.Run(run).load("best.keras")
    images = np.random.default_rng(0).uniform(0, 255, [2, 64, 80, 3]).astype(np.float32)
    found = exported.serve(tf.constant(images))
    assert found["boxes"].shape == model(images)["boxes"].shape

    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    out = command(
        *("predict", "--run", run, "--images", digits / "val", tmp_path / "broken.jpg"),
        *("--output", tmp_path / "drawn", "--threshold", 0.0),
    )
    assert f"Skipped: {tmp_path / 'broken.jpg'} (it is damaged)" in out
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 6
    results = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    ids = {category["id"] for category in content_of(digits)["categories"]}
    assert {result["category_id"] for result in results} <= ids

    out = command("evaluate", "--run", run, *("--annotations", digits / "val.json"),
                  "--images", digits / "val")  # fmt: skip
    assert "AP50 of each category" in out


def test_mixed_precision_and_replicas(digits, tmp_path, command):
    options = ["--precision", "mixed_bfloat16", "--strategy", "mirrored", "--kind", "rpn"]
    out = command(*options_of(digits, tmp_path / "run", *options, "--epochs", 1, "--no-export"))
    assert "tf.distribute: 1 replicas" in out
    model = runs.Run(tmp_path / "run").load("best.keras")
    assert model.backbone.get_layer("conv6").compute_dtype == "bfloat16"
    assert model.head is None


def test_pyramids(digits, tmp_path, command):
    options = ["--pyramid", "P3", "P2", "--epochs", 1, "--no-export"]
    out = command(*options_of(digits, tmp_path / "run", *options))
    assert "Anchors of 32, 64 pixels" in out
    model = runs.Run(tmp_path / "run").load("best.keras")
    assert model.stride == (4, 8) and model.backbone.output_shape[0][-1] == 8
    assert {layer.name for layer in model.head.layers} >= {"pooling_4", "pooling_8"}
    for wrong, message in (
        (["--pyramid", "P3", "P7"], "train_coco.py: .*got 'P7'; there are 'P1' .stride 2."),
        (["--level", "P7"], "train_coco.py: .*got 'P7'"),
        (["--pyramid", "P2", "P3", "--kind", "rfcn"], "pyramid must be None with kind 'rfcn'"),
    ):
        with pytest.raises(SystemExit, match=message):
            command(*options_of(digits, tmp_path / message, *wrong))


def test_runs_that_are_in_the_way_are_refused(digits, tmp_path, command):
    folder = tmp_path / "run"
    data = read_coco(digits / "train.json", digits / "train")
    config = {"size": [64, 80], "classes": [{"id": 1, "name": "other"}]}
    runs.Run(folder).begin(config, resume=False)
    with pytest.raises(SystemExit, match="has a run already: go on with --resume"):
        command(*options_of(digits, folder))
    with pytest.raises(SystemExit, match="--resume: the run in .* has classes"):
        command(*options_of(digits, folder, "--resume"))
    with pytest.raises(SystemExit, match="has no run: there is no config.json"):
        command(*options_of(digits, tmp_path / "nothing", "--resume"))
    with pytest.raises(SystemExit, match="has not come to the end of an epoch"):
        command("predict", "--run", folder, "--images", digits / "val", "--output", tmp_path)
    with pytest.raises(SystemExit, match="train_coco.py: .*nowhere.json: cannot be read"):
        command(*options_of(digits, tmp_path / "new", "--annotations", "nowhere.json"))
    assert CocoEvaluation(data, (64, 80), 4).every == 1


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["predict", "--help"]])
def test_help_explains_itself(words, command, capsys):
    with pytest.raises(SystemExit) as error:
        command(*words)
    assert error.value.code == 0
    assert "usage: train_coco.py" in capsys.readouterr().out


def test_anchors_have_the_sizes_of_the_objects(digits):
    data = read_coco(digits / "train.json", digits / "train")
    sizes = train_coco.anchor_sizes(data, (64, 80))
    doubled = train_coco.anchor_sizes(data, (128, 160))
    np.testing.assert_allclose(doubled, np.multiply(sizes, 2), rtol=1e-6)
    assert sizes == sorted(sizes) and isinstance(data.categories[0], Category)
