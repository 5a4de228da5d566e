"""Decode the bytes of a picture to upright, grey pixels; every error of Pillow becomes an ImageError."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from digitserve_client.pixels import ImageError

__all__ = ["FORMATS", "LARGEST_IMAGE", "cut_out", "decode", "open_undecoded", "to_grey", "upright"]

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""The formats that are opened, none of which starts other programs as EPS does; AVIF and HEIF by their brand."""

LARGEST_IMAGE = 100_000_000  # pixels: more than any camera, less than a decompression bomb

_TOO_LARGE = f"has more pixels than the {LARGEST_IMAGE:,} that are read"

_DRAFT = (512, 512)
"""A JPEG is decoded no larger than needed."""

_FLAT = 25
"""Grey levels within which an opaque part has one brightness."""

_FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)
"""White in floats and in 8, 10, 12, 14 and 16 bits: the smallest scale that holds the brightest pixel."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")


def decode(content: bytes) -> Image.Image:
    """Decode the picture in a file's content; ImageError if it is no picture, damaged or too large."""
    picture = open_undecoded(content)
    if picture.width * picture.height > LARGEST_IMAGE:
        raise ImageError(_TOO_LARGE)
    try:
        picture.draft("L", _DRAFT)
        picture.load()
    except Exception:  # noqa: BLE001 (Pillow's decoders raise errors of every kind)
        raise ImageError("is a damaged picture") from None
    return picture


def open_undecoded(content: bytes) -> Image.Image:
    """The picture with its header read alone, as `decode` begins."""
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    formats: tuple[str, ...] = ("AVIF",) if brand in _AVIF_BRANDS else FORMATS
    if brand in _HEIF_BRANDS:
        _register_heif()
        formats = ("HEIF",)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `decode` sets our own limit
            return Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError:
        raise ImageError(_TOO_LARGE) from None
    except (UnidentifiedImageError, KeyError):  # KeyError: a Pillow that does not know the format
        if brand in _AVIF_BRANDS:
            raise ImageError("is an AVIF picture, which this Pillow cannot read: save it as PNG or JPEG") from None
        raise ImageError(f"is no picture ({', '.join(FORMATS)}) and no IDX file of images") from None
    except Exception:  # noqa: BLE001 (as in `decode`)
        raise ImageError("is a damaged picture") from None


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener  # noqa: PLC0415 (an extra of its own)
    except ImportError:
        raise ImageError(
            "is a HEIC picture, which needs pillow-heif: pip install 'digitserve-client[heic]', or save it as JPEG"
        ) from None
    register_heif_opener()


def upright(picture: Image.Image) -> Image.Image:
    """Rotate the picture by its EXIF orientation."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # noqa: BLE001 (as above; its EXIF is damaged)
        return picture


def to_grey(picture: Image.Image) -> Image.Image:
    """Convert to 8-bit grey; transparent pixels take the opposite of the drawing's own brightness."""
    try:
        return _to_grey(picture)
    except Exception as e:  # noqa: BLE001 (Pillow raises ValueError, OSError and more for modes that it cannot convert)
        raise ImageError(f"has pixels of mode {picture.mode}, which cannot be made grey: {e}") from None


def _to_grey(picture: Image.Image) -> Image.Image:
    if picture.mode[0] in "IF":  # more than 8 bits, which `convert` would clip to white
        return _stretched(np.asarray(picture, np.float64))
    if picture.mode == "LAB":
        return picture.getchannel("L")
    if not picture.has_transparency_data:
        return picture.convert("L")
    layers = picture.convert("LA")
    light, alpha = (np.asarray(layer, dtype=np.float64) for layer in layers.split())
    drawn = float((light * alpha).sum() / max(alpha.sum(), 1))
    paper = Image.new("LA", layers.size, (255 if drawn < 128 else 0, 255))
    return Image.alpha_composite(paper.convert("RGBA"), layers.convert("RGBA")).convert("L")


def _stretched(levels: npt.NDArray[np.float64]) -> Image.Image:
    """Levels of any depth as 8 bits."""
    levels = np.nan_to_num(levels, posinf=0, neginf=0)
    levels = levels - min(float(levels.min()), 0)
    most = float(levels.max())
    full = next((scale for scale in _FULL_SCALES if most <= scale), most)
    return Image.fromarray((levels / full * 255).astype(np.uint8))


def cut_out(picture: Image.Image) -> Image.Image | None:
    """The opacity of a picture whose opaque part is all of one brightness, so that only its shape can be the digit."""
    with contextlib.suppress(ValueError, OSError):  # a mode that cannot be converted has no such layer
        if picture.has_transparency_data:
            light, alpha = picture.convert("LA").split()
            opaque = np.asarray(light)[np.asarray(alpha) > 127]
            flat = opaque.size and int(opaque.max()) - int(opaque.min()) < _FLAT
            return alpha if flat and opaque.size < np.asarray(alpha).size else None
    return None
