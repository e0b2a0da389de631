"""Any image file -> RGB, or an error that says what is wrong."""

import io
import pickle
import warnings

import numpy as np
import pytest
from disk import save
from PIL import Image

from fedpgp.data.decode import FilePictures, decode, reason
from fedpgp.errors import DataError


def pixel(file):
    picture = decode(file)
    assert picture.mode == "RGB"
    return picture.getpixel((0, 0))


def test_plain_pictures_have_the_pixels_of_pillow(pictograms):
    content = pictograms.validation.image.args[0]
    for index in range(0, len(content), 97):
        plain = Image.open(__import__("io").BytesIO(content[index])).convert("RGB")
        assert decode(content[index]).tobytes() == plain.tobytes()


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").size == (1, 1) and pixel(tmp_path / "a.png") == (1, 2, 3)


def test_cmyk_jpegs_that_are_not_adobes_are_not_inverted(tmp_path):
    """What Pillow writes is Adobe's; without the segment that says so its numbers are meant as they stand."""
    written = io.BytesIO()
    Image.new("CMYK", (16, 16), (255, 0, 0, 255)).save(written, "jpeg", quality=95)
    content = written.getvalue()
    start = content.index(b"\xff\xee")
    length = int.from_bytes(content[start + 2 : start + 4], "big")
    file = tmp_path / "a.jpg"
    file.write_bytes(content[:start] + content[start + 2 + length :])
    assert np.abs(np.asarray(decode(file)).astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("kind", ["jpg", "tif"])  # JPEG has CMYK inverted, as Adobe does; TIFF as it is
def test_cmyk_keeps_its_colour(tmp_path, kind):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / f"a.{kind}")
    np.testing.assert_allclose(pixel(tmp_path / f"a.{kind}"), (255, 0, 0), atol=3)


@pytest.mark.parametrize(("value", "seen"), [(0, 0), (257 * 100, 100), (65535, 255), (300, 1), (256, 1), (128, 0)])
@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, value, seen, kind):
    Image.fromarray(np.full((2, 2), value, dtype=np.uint16)).save(tmp_path / f"a.{kind}")
    assert pixel(tmp_path / f"a.{kind}") == (seen,) * 3


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (7, 255), (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("L", 9, (9, 9, 9)),
    ],
)
def test_what_is_transparent_lies_over_white(tmp_path, mode, colour, seen):
    Image.new(mode, (2, 2), colour).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png") == seen


@pytest.mark.parametrize("transparent", [False, True])
def test_palette(tmp_path, transparent):
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "a.png", **({"transparency": 1} if transparent else {}))
    assert pixel(tmp_path / "a.png") == ((255, 255, 255) if transparent else (10, 20, 30))


def test_of_an_animation_the_first(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "a.gif") == (255, 0, 0)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_exif_says(tmp_path, kind, orientation):
    values = np.zeros((16, 32, 3), dtype=np.uint8)
    values[:8, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / f"a.{kind}", exif=exif)
    # Where row 0 and column 0 of the file are, as the EXIF standard's table has it: seen[row][column] of the corners.
    bright = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    seen = np.asarray(decode(tmp_path / f"a.{kind}"))[..., 0]
    assert seen.shape == ((16, 32) if orientation < 5 else (32, 16))
    corners = {(row, column): seen[row, column] > 128 for row in (0, -1) for column in (0, -1)}
    assert [place for place, light in corners.items() if light] == [bright[orientation]]


def test_a_wrong_extension_does_not_matter(tmp_path):
    save(tmp_path / "a.png", 200).rename(tmp_path / "a.jpg")
    assert pixel(tmp_path / "a.jpg") == (200, 10, 20)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(OSError) as error:
        decode(tmp_path / "a.jpg")
    assert reason(error.value) == "no image format that is read"


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "bmp", "webp"])
def test_truncated(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{kind}")
    content = (tmp_path / f"a.{kind}").read_bytes()
    with pytest.raises(Exception) as error:
        decode(content[: len(content) // 2])
    assert reason(error.value) and getattr(error.value, "errno", None) is None


def test_huge(tmp_path, monkeypatch):
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # between the limit and twice the limit it is read
        assert decode(tmp_path / "a.png").size == (40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(DataError, match=r"more than 1,400 pixels.*make it smaller"):
        decode(tmp_path / "a.png")


def test_numbers_without_a_known_range(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"floating-point.*8 bits"):
        decode(tmp_path / "a.tif")
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match="more than 16 bits"):
        decode(tmp_path / "b.tif")


def test_a_file_that_cannot_be_read_has_an_errno(tmp_path):
    with pytest.raises(OSError) as error:
        decode(tmp_path / "none.png")
    assert error.value.errno is not None and "none.png" in str(error.value)


def test_files_are_pickled_and_told_apart(tmp_path):
    for i, name in enumerate("abc"):
        save(tmp_path / f"{name}.png", i)
    pictures = pickle.loads(pickle.dumps(FilePictures.of(tmp_path, ["a.png", "b.png", "c.png"])))
    assert pictures(2).getpixel((0, 0)) == (2, 10, 20) and pictures.place(0) == str(tmp_path / "a.png")
    everything = np.arange(3)
    first = pictures.fingerprint(everything)
    assert len({pictures.fingerprint(np.array(images)) for images in ([0, 1], [2, 0], [0, 2])}) == 3
    (tmp_path / "b.png").write_bytes(b"")
    assert pictures.fingerprint(everything) != first
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 image files are missing, the first is .*b\.png"):
        pictures.fingerprint(everything)


def test_a_name_that_is_no_text(tmp_path):
    name = b"caf\xe9.png"
    save(tmp_path / __import__("os").fsdecode(name))
    pictures = FilePictures.of(tmp_path, [__import__("os").fsdecode(name)])
    assert pictures(0).size == (4, 4) and pictures.place(0).endswith("caf\\udce9.png")
    assert pictures.fingerprint(np.arange(1))
