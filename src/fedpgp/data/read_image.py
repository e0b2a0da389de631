"""Images of any kind -> RGB pictures, the same way everywhere.

This file needs NumPy and Pillow only: an export has a copy of it, so that whoever uses a model reads images as fedpgp
does. Of fedpgp, licence Apache-2.0.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

# Without formats that are programs (PostScript is run by another one) or that no data set of pictures has.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
HEIF = "HEIF"  # the name that pillow-heif gives its format
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEAD = 12  # bytes, which end with the brand of a HEIF file
PIXELS = 178_956_970  # that are read of one file: twice the number at which Pillow begins to warn
LONGEST = 100  # times its shorter side: of a longer picture the middle is taken, as resizing the whole takes gigabytes
WHITE = (255, 255, 255, 255)
BITS_PER_SAMPLE = 258  # a tag of TIFF
SMALL_GREYS = {"L;2": 85, "L;4": 17}  # of PNG -> what one step of grey is in 8 bits
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
    """An image whose pixels are too many, or mean nothing without knowledge that it does not hold."""


def read_image(
    image: "Path | str | bytes | Image.Image | np.ndarray[Any, Any]", square: int | None = None
) -> Image.Image:
    """A file, its bytes, a Pillow image or an array -> the picture in RGB, turned as its EXIF orientation says.

    What a file is, is read from its content, whatever its name; of an animation the first picture is taken. 16 bits per
    pixel become 8 by division by 257; what is transparent lies over white. An array is [H, W] or [H, W, C] of uint8 or
    uint16, with 1 (grey), 3 (RGB) or 4 (RGB and opacity) channels. Of a picture that is more than `LONGEST` times as
    long as wide the middle is taken. square: a side in pixels, to which the picture is resized and cut as OpenAI's code
    does it.

    Raises PictureError for more than `PIXELS` pixels, and for pixels whose range is unknown; what Pillow raises, for
    content that is no whole image; OSError with an errno for a file that cannot be read.
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
    """The shorter side resized to so many pixels, then the middle, by torchvision's rules of rounding."""
    width, height = (int(side * length / min(picture.size)) for length in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def open_image(file: Path | str | bytes) -> Image.Image:
    """A file, or its bytes, of a format that is read, before it is decoded; raises as `read_image` does."""
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
        raise PictureError('it is HEIC, which needs pillow-heif: pip install "fedpgp[heic]"') from error
    pillow_heif.register_heif_opener()
    return Image.open(source, formats=(HEIF,))


def _read(picture: Image.Image) -> Image.Image:
    if picture.width * picture.height > PIXELS:
        raise _too_large()
    depth, tile = picture.mode, getattr(picture, "tile", None)
    if tile and picture.format == "PNG":  # it is gone when the picture is loaded
        depth = str(tile[0][3])
    picture.load()
    # Pillow takes every CMYK JPEG for Adobe's, which are inverted; those say so.
    plain = picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info
    seen = _eight_bits(ImageChops.invert(picture) if plain else picture, picture, depth)
    return _middle(_turned(seen, picture))


def _too_large() -> PictureError:
    return PictureError(f"it has more than {PIXELS:,} pixels, the most that are read: make it smaller")


def _middle(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is very long, or the whole of another one."""
    width, height = picture.size
    longest = LONGEST * min(width, height)
    if max(width, height) <= longest:
        return picture
    longest += (max(width, height) - longest) % 2  # so that the middle stays where it is
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return picture.crop((left, top, width - left, height - top))


def _turned(seen: Image.Image, picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged note on a picture does not damage the picture
        return seen
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return seen if turn is None else seen.transpose(turn)


def _eight_bits(given: Image.Image, opened: Image.Image, depth: str) -> Image.Image:
    """In RGB, with nothing clipped and nothing transparent. depth: a mode, or how a PNG keeps its values."""
    clear = opened.info.get("transparency")
    if given.mode.startswith("I"):
        values = np.asarray(given)
        grey = Image.fromarray(_scaled(values, _largest(opened)))
        if isinstance(clear, int):
            grey.paste(WHITE[0], mask=Image.fromarray(values == clear))
        return grey.convert("RGB")
    if given.mode == "F":
        raise PictureError("its pixels are floating-point numbers of unknown range: save it with 8 bits")
    if isinstance(clear, tuple) and (depth == "RGB;16B" or max(clear) > 255):
        raise PictureError("its colours have 16 bits, and one of them is transparent: save it with 8 bits")
    if isinstance(clear, int) and depth in SMALL_GREYS:  # Pillow scales the greys, and not the transparent one
        given = given.copy()
        given.info["transparency"] = clear * SMALL_GREYS[depth]
    if given.has_transparency_data:
        seen = given.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, WHITE), seen).convert("RGB")
    return given.convert("RGB") if given.mode != "RGB" else given.copy()


def _largest(picture: Image.Image) -> int:
    """The value of white; raises PictureError where a picture of integers does not say it."""
    bits = 16
    if picture.format == "TIFF":
        bits = int(picture.tag_v2.get(BITS_PER_SAMPLE, (bits,))[0])  # type: ignore[attr-defined]
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # older versions of Pillow have 16 bits so, too
        raise PictureError(
            "its pixels are integers of 32 bits, or with a sign, and their range is unknown: save it with 8 or 16 bits"
        )
    return 2**bits - 1


def _scaled(values: "np.ndarray[Any, Any]", largest: int) -> "np.ndarray[Any, Any]":
    """Values from 0 to the largest as bytes, rounded."""
    if values.size and (values.min() < 0 or values.max() > largest):
        raise PictureError(f"its pixels must be 0 to {largest}, got {values.min()} to {values.max()}: write it again")
    return ((values.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)


def _of_array(array: "np.ndarray[Any, Any]") -> Image.Image:
    shape: Sequence[int] = array.shape
    if len(shape) not in (2, 3) or not array.size or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise PictureError(
            f"an array must be [H, W], or [H, W, C] with 1, 3 or 4 channels, got {list(shape)}: transpose it, or give"
            " several images as a list"
        )
    if array.dtype not in (np.uint8, np.uint16):
        raise PictureError(
            f"an array must be of uint8 (0 to 255) or uint16 (0 to 65535), got {array.dtype}: scale it to 0 to 255 and"
            " convert it with astype('uint8')"
        )
    values = array if array.dtype == np.uint8 else _scaled(array, 65535)
    return _eight_bits(given := Image.fromarray(values[..., 0] if shape[2:] == (1,) else values), given, given.mode)
