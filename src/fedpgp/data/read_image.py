"""Read images of any kind into RGB pictures, in the same way everywhere.

This file needs only NumPy and Pillow: an exported model contains a copy of it, so that its users read images as
fedpgp does. Part of fedpgp, licence Apache-2.0.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

# Formats that are programs (PostScript) or that occur in no dataset of pictures are left out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
HEIF = "HEIF"  # the name that pillow-heif gives its format
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEAD = 12  # first bytes of a file, which end with the brand of a HEIF file
PIXELS = 178_956_970  # largest number of pixels of a picture: twice the number at which Pillow begins to warn
LONGEST = 100  # largest ratio of the sides; a longer picture is cut to its middle, as resizing it takes gigabytes
WHITE = (255, 255, 255, 255)
BITS_PER_SAMPLE = 258  # a tag of TIFF
SMALL_GREYS = {"L;2": 85, "L;4": 17}  # mode of a PNG -> value of one step of grey in 8 bits
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """An image with too many pixels, or whose pixels have no meaning without facts that it does not contain.

    Attributes
    ----------
    problem
        What is wrong: a clause.
    remedy
        What to do: an imperative.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}."


def read_image(
    image: "Path | str | bytes | Image.Image | np.ndarray[Any, Any]", square: int | None = None
) -> Image.Image:
    """Read a picture in RGB, turned as its EXIF orientation says.

    The format of a file is detected from its content, whatever its name. Only the first picture of an animation is
    read. 16 bits per pixel become 8 by division by 257. Transparent pixels are shown on white. A picture that is more
    than `LONGEST` times as long as wide is cut to its middle.

    Parameters
    ----------
    image
        A file, its bytes, a Pillow image, or an array [H, W] or [H, W, C] of uint8 or uint16 with C = 1 (grey), 3 (RGB)
        or 4 (RGB and opacity) channels.
    square
        A side in pixels, to which the picture is resized and cropped as in OpenAI's code.

    Raises
    ------
    PictureError
        If the image has more than `PIXELS` pixels, or pixels whose range is unknown.
    OSError
        With an errno, if the file cannot be read.
    Exception
        Whatever Pillow raises for content that is not a whole image.
    """
    if isinstance(image, Image.Image):
        seen = _read(image)
    elif isinstance(image, np.ndarray):
        seen = _middle(_of_array(image))
    else:
        try:
            with open_image(image) as picture:
                seen = _read(picture)
        except Image.DecompressionBombError as error:
            raise _too_large() from error
    return seen if square is None else _square(seen, square)


def _square(picture: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` pixels and crop the middle, with torchvision's rounding."""
    width, height = (int(side * length / min(picture.size)) for length in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def open_image(file: Path | str | bytes) -> Image.Image:
    """Open a file, or its bytes, without decoding it. Raises the same exceptions as `read_image`."""
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        if isinstance(file, bytes):
            head = file[:HEAD]
        else:
            with Path(file).open("rb") as opened:
                head = opened.read(HEAD)
        if head[4:8] != b"ftyp" or head[8:] not in HEIF_BRANDS:
            raise
    try:
        import pillow_heif
    except ImportError as error:
        raise PictureError("it is HEIC, which needs pillow-heif", 'Run `pip install "fedpgp[heic]"`') from error
    pillow_heif.register_heif_opener()
    return Image.open(source, formats=(HEIF,))


def _read(picture: Image.Image) -> Image.Image:
    if picture.width * picture.height > PIXELS:
        raise _too_large()
    depth, tile = picture.mode, getattr(picture, "tile", None)
    if tile and picture.format == "PNG":  # the tile is gone once the picture is loaded
        depth = str(tile[0][3])
    picture.load()
    # Pillow treats every CMYK JPEG as Adobe's, which are inverted and have an Adobe marker.
    plain = picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info
    seen = _eight_bits(ImageChops.invert(picture) if plain else picture, picture, depth)
    return _middle(_turned(seen, picture))


def _too_large() -> PictureError:
    return PictureError(f"it has more than {PIXELS:,} pixels, the limit", "Make it smaller")


def _middle(picture: Image.Image) -> Image.Image:
    """Return the middle of a very long picture, or any other picture as it is."""
    width, height = picture.size
    longest = LONGEST * min(width, height)
    if max(width, height) <= longest:
        return picture
    longest += (max(width, height) - longest) % 2  # so that the middle does not shift
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return picture.crop((left, top, width - left, height - top))


def _turned(seen: Image.Image, picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata does not damage the picture
        return seen
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return seen if turn is None else seen.transpose(turn)


def _eight_bits(given: Image.Image, opened: Image.Image, depth: str) -> Image.Image:
    """Convert to RGB without clipping or transparency. `depth`: a mode, or how a PNG stores its values."""
    clear = opened.info.get("transparency")
    if given.mode.startswith("I"):
        values = np.asarray(given)
        grey = Image.fromarray(_scaled(values, _largest(opened)))
        if isinstance(clear, int):
            grey.paste(WHITE[0], mask=Image.fromarray(values == clear))
        return grey.convert("RGB")
    if given.mode == "F":
        raise PictureError("its pixels are floating-point numbers of unknown range", "Save it with 8 bits")
    if isinstance(clear, tuple) and (depth == "RGB;16B" or max(clear) > 255):
        raise PictureError("its colours have 16 bits, and one of them is transparent", "Save it with 8 bits")
    if isinstance(clear, int) and depth in SMALL_GREYS:  # Pillow scales the greys, but not the transparent one
        given = given.copy()
        given.info["transparency"] = clear * SMALL_GREYS[depth]
    if given.has_transparency_data:
        seen = given.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, WHITE), seen).convert("RGB")
    return given.convert("RGB") if given.mode != "RGB" else given.copy()


def _largest(picture: Image.Image) -> int:
    """Return the value of white; raise PictureError if a picture of integers does not define it."""
    bits = 16
    if picture.format == "TIFF":
        bits = int(picture.tag_v2.get(BITS_PER_SAMPLE, (bits,))[0])  # type: ignore[attr-defined]
    if picture.mode == "I" and picture.format not in (
        "PNG",
        "PPM",
    ):  # older versions of Pillow use this mode for 16 bits, too
        raise PictureError(
            "its pixels are integers of 32 bits or with a sign, and their range is unknown", "Save it with 8 or 16 bits"
        )
    return 2**bits - 1


def _scaled(values: "np.ndarray[Any, Any]", largest: int) -> "np.ndarray[Any, Any]":
    """Scale values from 0 to `largest` to bytes, rounded."""
    if values.size and (values.min() < 0 or values.max() > largest):
        raise PictureError(f"its pixels must be 0 to {largest}, got {values.min()} to {values.max()}", "Write it again")
    return ((values.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)


def _of_array(array: "np.ndarray[Any, Any]") -> Image.Image:
    shape: Sequence[int] = array.shape
    if len(shape) not in (2, 3) or not array.size or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise PictureError(
            f"an array must be [H, W], or [H, W, C] with 1, 3 or 4 channels, got {list(shape)}",
            "Transpose it, or pass several images as a list",
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise PictureError(
            f"an array must be of uint8 (0 to 255) or uint16 (0 to 65535), got {array.dtype}",
            "Scale it to 0 to 255 and convert it with astype('uint8')",
        )
    values = array if array.dtype == np.uint8 else _scaled(array, 65535)
    return _eight_bits(given := Image.fromarray(values[..., 0] if shape[2:] == (1,) else values), given, given.mode)
