"""Decode any image file into RGB, or raise an error with the reason."""

import io
import os
import pickle
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from disk import save
from PIL import Image
from raising import raises

from fedpgp.data.decode import FilePictures, decode, reason
from fedpgp.errors import DataError


def png(width, height, depth, colour, rows, clear=b""):
    """Return a PNG of these bytes, of colour type 0 (grey) or 2 (RGB). `clear`: the content of its chunk tRNS."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    parts += [chunk(b"tRNS", clear)] * bool(clear)
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pixel(file):
    picture = decode(file)
    assert picture.mode == "RGB"
    return picture.getpixel((0, 0))


def test_plain_pictures_have_the_pixels_of_pillow(pictograms):
    content = pictograms.validation.image.args[0]
    for index in range(0, len(content), 97):
        plain = Image.open(io.BytesIO(content[index])).convert("RGB")
        assert decode(content[index]).tobytes() == plain.tobytes()


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").size == (1, 1) and pixel(tmp_path / "a.png") == (1, 2, 3)


def test_cmyk_jpegs_that_are_not_adobes_are_not_inverted(tmp_path):
    """Pillow writes Adobe's CMYK; without the Adobe segment, the numbers must not be inverted."""
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
    # [row][column] of the bright corner for each orientation, from the table of the EXIF standard.
    bright = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    seen = np.asarray(decode(tmp_path / f"a.{kind}"))[..., 0]
    assert seen.shape == ((16, 32) if orientation < 5 else (32, 16))
    corners = {(row, column): seen[row, column] > 128 for row in (0, -1) for column in (0, -1)}
    assert [place for place, light in corners.items() if light] == [bright[orientation]]


def test_a_wrong_extension_does_not_matter(tmp_path):
    save(tmp_path / "a.png", 200).rename(tmp_path / "a.jpg")
    assert pixel(tmp_path / "a.jpg") == (200, 10, 200)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(OSError) as error:
        decode(tmp_path / "a.jpg")
    assert reason(error.value) and "0x" not in reason(error.value)


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
        warnings.simplefilter("error")  # a picture between the limit and twice the limit is read
        assert decode(tmp_path / "a.png").size == (40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with raises(DataError, problem="178,956,970 pixels"):
        decode(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # other libraries set this
    with raises(DataError, problem="178,956,970 pixels"):
        decode(png(46_341, 46_341, 1, 0, [], b""))


def test_numbers_without_a_known_range(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with raises(DataError, problem="floating-point", remedy="8 bits"):
        decode(tmp_path / "a.tif")
    Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)).save(tmp_path / "b.tif")
    with raises(DataError, problem="32 bits", remedy="8 or 16 bits"):
        decode(tmp_path / "b.tif")


def test_a_file_that_cannot_be_read_has_an_errno(tmp_path):
    with pytest.raises(OSError) as error:
        decode(tmp_path / "none.png")
    assert error.value.errno is not None and "none.png" in str(error.value)


def test_files_are_pickled_and_told_apart(tmp_path):
    for i, name in enumerate("abc"):
        save(tmp_path / f"{name}.png", i)
    pictures = pickle.loads(pickle.dumps(FilePictures.of(tmp_path, ["a.png", "b.png", "c.png"])))
    assert pictures(2).getpixel((0, 0)) == (2, 10, 200) and pictures.place(0) == str(tmp_path / "a.png")
    everything = np.arange(3)
    first = pictures.fingerprint(everything)
    assert len({pictures.fingerprint(np.array(images)) for images in ([0, 1], [2, 0], [0, 2])}) == 3
    (tmp_path / "b.png").write_bytes(b"")
    assert pictures.fingerprint(everything) != first
    (tmp_path / "b.png").unlink()
    with raises(DataError, where=str(tmp_path / "b.png"), problem="1 of 3"):
        pictures.fingerprint(everything)


def test_a_name_that_is_not_text(tmp_path):
    name = b"caf\xe9.png"
    save(tmp_path / os.fsdecode(name))
    pictures = FilePictures.of(tmp_path, [os.fsdecode(name)])
    assert pictures(0).size == (4, 4) and pictures.place(0).endswith("caf\\xe9.png")
    assert pictures.fingerprint(np.arange(1))


@pytest.mark.parametrize("kind", ["png", "gif", "tif", "jpg"])
def test_an_opened_image_and_bytes_are_read_as_the_file_is(tmp_path, kind):
    """The pictures are transparent, have 16 bits, or are turned by EXIF."""
    file, exif = tmp_path / f"a.{kind}", Image.Exif()
    exif[0x0112] = 6
    if kind == "tif":
        values = np.arange(512 * 32, dtype=np.uint16).reshape(16, -1)
        Image.fromarray(values).save(file)
    elif kind == "jpg":
        Image.linear_gradient("L").save(file, exif=exif)
    else:
        picture = Image.linear_gradient("L").convert("RGBA")
        picture.putalpha(Image.radial_gradient("L"))
        picture.save(file)
    expected = decode(file)
    with Image.open(file) as opened:
        loaded = opened.copy()
        assert decode(opened).tobytes() == expected.tobytes()
        assert decode(opened).size == expected.size
    assert decode(file.read_bytes()).tobytes() == decode(str(file)).tobytes() == expected.tobytes()
    if kind != "jpg":  # Pillow's copies keep transparency, but not EXIF
        assert decode(loaded).tobytes() == expected.tobytes()


def test_arrays_are_read_as_the_files_that_hold_them(tmp_path):
    rng = np.random.default_rng(0)
    for shape, dtype in (((5, 4, 3), "uint8"), ((5, 4), "uint8"), ((5, 4, 4), "uint8"), ((5, 4), "uint16")):
        array = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
        Image.fromarray(array).save(tmp_path / "a.png")
        assert decode(array).tobytes() == decode(tmp_path / "a.png").tobytes()
        if len(shape) == 2:
            assert decode(array[..., None]).tobytes() == decode(array).tobytes()
    assert decode(np.full((2, 2, 3), 257 * 100, dtype=np.uint16)).getpixel((0, 0)) == (100,) * 3
    assert decode(np.full((2, 2, 4), 0, dtype=np.uint16)).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((3, 8, 8), np.uint8), "[3, 8, 8]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "[2, 8, 8, 3]"),
        (np.zeros((0, 8, 3), np.uint8), "[0, 8, 3]"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8), np.int64), "int64"),
    ],
)
def test_ambiguous_arrays_are_refused(array, got):
    with raises(DataError, problem=f"got {got}"):
        decode(array)


@pytest.mark.parametrize("sides", [(1, 20_000), (20_000, 1), (3, 301), (900, 8)])
def test_a_very_long_picture_is_cut_to_its_middle(sides):
    values = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
    seen, longest = np.asarray(decode(values)), max(sides)
    kept = max(seen.shape)
    assert min(seen.shape[:2]) == min(sides) and 0 <= kept - 100 * min(sides) < 2 and (longest - kept) % 2 == 0
    middle = slice((longest - kept) // 2, (longest + kept) // 2)
    assert np.array_equal(seen, values[middle] if sides[0] > sides[1] else values[:, middle])


def test_a_picture_a_hundred_times_as_long_as_wide_is_read_whole():
    assert decode(np.zeros((2, 200), np.uint8)).size == (200, 2)


@pytest.mark.parametrize(
    ("dtype", "values"), [("int32", [0, 255]), ("int16", [0, 255]), ("uint32", [0, 65535]), ("int32", [-1, 3])]
)
def test_integers_of_unknown_range_are_refused(tmp_path, dtype, values):
    """Division by 257 would make a TIFF of int32 from 0 to 255 black."""
    tags = {"int32": (32, 2), "int16": (16, 2), "uint32": (32, 1)}[dtype]
    Image.fromarray(np.array([values], dtype="int32")).save(tmp_path / "a.tif")
    if dtype != "int32":
        (tmp_path / "a.tif").write_bytes(tiff(np.array([values], dtype=dtype), *tags))
    with raises(DataError, problem="32 bits", remedy="8 or 16 bits"):
        decode(tmp_path / "a.tif")
    with raises(DataError, problem="32 bits", remedy="8 or 16 bits"):
        decode(Image.fromarray(np.array([values], dtype="int32")))


def tiff(values: np.ndarray, bits: int, sample_format: int, content: bytes = b"") -> bytes:
    """Return an uncompressed grey TIFF with one strip."""
    content = content or values.tobytes()
    tags = {256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: len(values)}
    tags |= {279: len(content), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<I", 8 + len(content))
    return head + content + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def test_twelve_bits_in_a_tiff_that_says_so_are_scaled():
    content = bytes([0xFF, 0xF0, 0x00, 0x7F, 0xF8, 0x00])  # 4095, 0, 2047, 2048
    seen = decode(tiff(np.zeros((1, 4)), 12, 1, content))
    assert np.asarray(seen)[0, :, 0].tolist() == [255, 0, 127, 128]


def words(*values):
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    ("depth", "row", "clear", "seen"),
    [
        (16, words(51400, 1028), words(51400), [255, 4]),
        (16, words(51401, 1028), words(51400), [200, 4]),
        (8, bytes([200, 4]), words(200), [255, 4]),
        (4, bytes([0xA5]), words(10), [255, 85]),
        (2, bytes([0b10010000]), words(2), [255, 85]),
        (1, bytes([0b01000000]), words(0), [255, 255]),
    ],
)
def test_a_transparent_grey_of_any_depth_becomes_white(depth, row, clear, seen):
    assert np.asarray(decode(png(2, 1, depth, 0, [row], clear)))[0, :, 0].tolist() == seen


def test_a_transparent_colour_of_sixteen_bits_is_refused():
    """Pillow keeps only the upper half of each value, so other colours would become transparent, too."""
    with raises(DataError, problem="transparent", remedy="8 bits"):
        decode(png(1, 1, 16, 2, [words(1, 2, 3)], words(1, 2, 3)))
    assert decode(png(1, 1, 16, 2, [words(512, 513, 767)])).getpixel((0, 0)) == (2, 2, 2)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.jpg").write_bytes(HEIC)
    for image in (HEIC, tmp_path / "a.jpg"):
        with raises(DataError, problem="HEIC", remedy='`pip install "fedpgp[heic]"`'):
            decode(image)


def test_heic_is_read_with_its_library(tmp_path):
    library = pytest.importorskip("pillow_heif")
    if not library.libheif_info()["encoders"]:
        pytest.skip("this build of pillow-heif writes nothing")
    library.register_heif_opener()
    Image.new("RGB", (64, 48), (200, 10, 20)).save(tmp_path / "a.heic")
    np.testing.assert_allclose(decode(tmp_path / "a.heic").getpixel((3, 3)), (200, 10, 20), atol=6)
    assert decode((tmp_path / "a.heic").read_bytes()).size == (64, 48)
