"""What viewers send to the demo: pictures, class names and numbers."""

from PIL import Image

from fedpgp.data.decode import decode, reason, unheard
from fedpgp.data.read_image import open_image
from fedpgp.errors import ConfigError, DataError

MOST_PIXELS = 32_000_000
MOST_NAMES, LONGEST_NAME = 100, 80


def class_names(text: str) -> list[str]:
    """Return class names from a text in which commas or line ends separate them; control characters become blanks."""
    parts = text.replace("\r", "\n").replace("\n", ",").split(",")
    names = (" ".join("".join(c if c.isprintable() else " " for c in part).split()) for part in parts)
    return [name for name in names if name]


def picture_of(content: bytes) -> Image.Image:
    """Return the picture of an uploaded file in RGB, without using the file's name; raise DataError for other files."""
    try:
        with unheard(), open_image(content) as picture:
            pixels = picture.width * picture.height
    except MemoryError:
        raise
    except Exception as error:  # decoders raise any exception on a damaged file
        raise _unreadable(error) from error
    if pixels > MOST_PIXELS:
        raise DataError(
            where="the number of pixels of the picture",
            allowed=f"at most {MOST_PIXELS}",
            got=pixels,
            remedy="Make the picture smaller",
        )
    try:
        return decode(content)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> DataError:
    return DataError(
        f"the picture cannot be read: {reason(error)}", remedy="Choose another file, such as a PNG or JPEG file"
    )


def number(name: str, value: str) -> int:
    """Return a whole number from a text; raise ConfigError with the name for another text."""
    try:
        return int(value)
    except ValueError as error:
        remedy = f"Use a number such as {name}=1"
        raise ConfigError(where=name, allowed="a whole number", got=value[:20], remedy=remedy) from error


def check_size(names: list[str]) -> None:
    """Raise ConfigError if there are more class names than a page can show, or longer ones."""
    if len(names) > MOST_NAMES:
        raise ConfigError(
            where="the number of class names",
            allowed=f"at most {MOST_NAMES}",
            got=len(names),
            remedy="Remove some class names",
        )
    for name in names:
        if len(name) > LONGEST_NAME:
            raise ConfigError(
                where=f"the length of the class name {name[:20]!r}…",
                allowed=f"at most {LONGEST_NAME} characters",
                got=len(name),
                remedy="Use a shorter name",
            )
