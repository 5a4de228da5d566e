"""Distorted copies of digits: every image rotated, scaled, sheared, shifted and bent at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from export.recipe import Distortion

_SIDE = 28
_PADDED = _SIDE + 2
_CONTROL = 5
"""So many points a side are moved; the pixels between them follow."""


def distort(key: jax.Array, images: jax.Array, limits: Distortion) -> jax.Array:
    """Each image (n, 784) distorted by its own draw; float32 in the same units, bilinear, background outside.

    A coarse grid of control points is turned, scaled, sheared and shifted as one, and each of them a little by
    itself. Simard, Steinkraus and Platt, "Best practices for convolutional neural networks", 2003, move every pixel
    by itself and smooth; the grid does the same for less.
    """
    for_affine, for_bend = jax.random.split(key)
    grid = jnp.linspace(-(_SIDE - 1) / 2, (_SIDE - 1) / 2, _CONTROL)
    points = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij")).reshape(2, -1)
    matrix, shift = _affine(for_affine, len(images), limits)
    bend = limits.bend * jax.random.normal(for_bend, (len(images), *points.shape))
    return _sampled(images, (matrix @ points + shift + bend) @ _interpolation())


def _affine(key: jax.Array, n: int, limits: Distortion) -> tuple[jax.Array, jax.Array]:
    """Matrices (n, 2, 2) and shifts (n, 2, 1) on (y, x): the source of each output point, from the middle."""
    draw = jax.random.uniform(key, (n, 6), minval=-1.0, maxval=1.0)
    angle = jnp.deg2rad(limits.rotation) * draw[:, 0]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    tall, wide = jnp.exp(limits.scale * draw[:, 1]), jnp.exp(limits.scale * draw[:, 2])
    rows = [[cos * tall, -sin * wide + limits.shear * draw[:, 3]], [sin * tall, cos * wide]]
    return jnp.stack([jnp.stack(row, axis=1) for row in rows], axis=1), limits.shift * draw[:, 4:, None]


def _interpolation() -> jax.Array:
    """The matrix (25, 784) that carries values at the control points to the pixels, linearly on each axis."""
    place = jnp.linspace(0.0, _CONTROL - 1.0, _SIDE)
    tent = jnp.maximum(0.0, 1.0 - jnp.abs(place - jnp.arange(_CONTROL)[:, None]))
    return jnp.kron(tent, tent)


def _sampled(images: jax.Array, places: jax.Array) -> jax.Array:
    """The images (n, 784) read between their pixels at `places` (n, 2, 784), which count from the middle.

    A border of background, one pixel wide, answers for all that lies outside.
    """
    at = jnp.clip(places + (_PADDED - 1) / 2, 0.0, _PADDED - 1.001)
    corner = at.astype(jnp.int32)
    fy, fx = at[:, 0] - corner[:, 0], at[:, 1] - corner[:, 1]
    padded = jnp.pad(images.reshape(-1, _SIDE, _SIDE), ((0, 0), (1, 1), (1, 1))).reshape(-1)
    first = (jnp.arange(len(images)) * _PADDED**2)[:, None] + corner[:, 0] * _PADDED + corner[:, 1]

    def pixel(down: int, right: int) -> jax.Array:
        ink: jax.Array = padded.at[first + down * _PADDED + right].get(mode="promise_in_bounds")
        return ink.astype(jnp.float32)

    upper = (1 - fx) * pixel(0, 0) + fx * pixel(0, 1)
    lower = (1 - fx) * pixel(1, 0) + fx * pixel(1, 1)
    return (1 - fy) * upper + fy * lower
