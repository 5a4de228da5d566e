"""The training recipe: all seeds at once, in one compiled step of JAX, and the network each seed comes to."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.nn import initializers
from optax.contrib import muon

from export.augment import distort
from export.network import LAYER_SIZES, Activation, Doubles, Network

if TYPE_CHECKING:
    from collections.abc import Callable

    from export.mnist import Examples
    from export.recipe import Recipe

Parameters = tuple[tuple[jax.Array, jax.Array], ...]
"""Weights (in, out) and biases (out,) of the three layers, as in row vectors: a' = squash(a W + b)."""

_IMAGES = 784
"""Seed of the order and the distortion of the images, independent of the networks and their number."""


class State(NamedTuple):
    """The training state of one network."""

    parameters: Parameters
    optimizer: optax.OptState


class Epoch(NamedTuple):
    """The result of one pass over the images: the loss of each seed, and its accuracy on the held-out digits."""

    loss: Doubles
    accuracy: Doubles | None


def fit(
    recipe: Recipe,
    examples: Examples,
    held_out: Examples | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    record: Callable[[list[Network]], None] | None = None,
    synthetic: Examples | None = None,
) -> list[Network]:
    """The network of every seed, trained on these images; `on_epoch` receives the progress.

    With `synthetic`, each epoch adds a random choice of those digits, `recipe.synthetic_share` for each example.

    `record` receives the networks before the first epoch and after each.

    The seeds differ in their first weights only. They see the same distorted images in the same order, so that the
    first layer of all of them is one product of matrices. Raises ValueError if training diverges.
    """
    added = int(recipe.synthetic_share * len(examples)) if synthetic else 0
    optimizer = _optimizer(recipe, steps=recipe.epochs * ((len(examples) + added) // recipe.batch))
    seeds = jax.vmap(jax.random.key)(jnp.arange(recipe.seeds))
    states = jax.vmap(partial(_start, recipe, optimizer))(seeds)
    epoch = _compiled_epoch(recipe, optimizer)
    images, labels = jnp.asarray(examples.images), jnp.asarray(examples.labels)
    if record:
        record(networks(recipe.activation, states.parameters))
    for key in jax.random.split(jax.random.key(_IMAGES), recipe.epochs):
        if synthetic:
            rows = np.asarray(jax.random.randint(jax.random.fold_in(key, 0), (added,), 0, len(synthetic)))
            mixture = examples + synthetic[rows]
            images, labels = jnp.asarray(mixture.images), jnp.asarray(mixture.labels)
        states, losses = epoch(states, images, labels, key)
        accuracy = None if held_out is None else _accuracy(recipe.activation, states.parameters, held_out)
        if record:
            record(networks(recipe.activation, states.parameters))
        on_epoch(Epoch(np.asarray(losses, np.float64), accuracy))
    return networks(recipe.activation, states.parameters)


def logits(activation: Activation, parameters: Parameters, pixels: jax.Array) -> jax.Array:
    """Return the inputs of the output sigmoids, (..., 10), for pixels (..., 784) in 0..1.

    A sigmoid network is trained with tanh, which is centred on 0 and better conditioned. `_in_sigmoids` converts it to
    the equal sigmoids.
    """
    activation_ = {"sigmoid": jnp.tanh, "relu": jax.nn.relu}[activation]
    *hidden, (W, b) = parameters
    layer = pixels
    for W_hidden, b_hidden in hidden:
        layer = activation_(layer @ W_hidden + b_hidden)
    return layer @ W + b


def loss(recipe: Recipe, parameters: Parameters, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean loss over n images: cross-entropy of the digit, and of each output."""
    z = logits(recipe.activation, parameters, pixels)
    target = jax.nn.one_hot(labels, LAYER_SIZES[-1])
    which = optax.softmax_cross_entropy(z, target)
    bright = optax.sigmoid_binary_cross_entropy(z, target).sum(axis=-1)
    return jnp.mean(which + recipe.brightness * bright)


def networks(activation: Activation, parameters: Parameters) -> list[Network]:
    """The network of each seed from parameters that have the seeds as their first axis."""
    stacked = [(np.asarray(W, np.float64), np.asarray(b, np.float64)) for W, b in parameters]
    seeds = len(stacked[0][0])
    return [to_network(activation, [(W[seed], b[seed]) for W, b in stacked]) for seed in range(seeds)]


def to_network(activation: Activation, layers: list[tuple[Doubles, Doubles]]) -> Network:
    """The network that `logits` computes, in the film's terms: sigmoids or ReLUs, and weights (out, in).

    Raises ValueError if a weight is not finite.
    """
    if activation == "sigmoid":
        layers = _in_sigmoids(layers)
    w1, w2, w3 = (np.ascontiguousarray(W.T, np.float32) for W, _ in layers)
    b1, b2, b3 = (b.astype(np.float32) for _, b in layers)
    return Network(activation, (w1, w2, w3), (b1, b2, b3))


def _in_sigmoids(layers: list[tuple[Doubles, Doubles]]) -> list[tuple[Doubles, Doubles]]:
    """The same function with sigmoid hidden units, exactly: tanh(z) = 2 sigmoid(2 z) - 1."""
    (W1, b1), (W2, b2), (W3, b3) = layers
    return [
        (2 * W1, 2 * b1),
        (4 * W2, 2 * (b2 - W2.sum(axis=0))),
        (2 * W3, b3 - W3.sum(axis=0)),
    ]


def _start(recipe: Recipe, optimizer: optax.GradientTransformation, key: jax.Array) -> State:
    keys = jax.random.split(key, 3)
    hidden = {"sigmoid": initializers.glorot_uniform(), "relu": initializers.he_uniform()}[recipe.activation]
    draws = (hidden, hidden, initializers.glorot_uniform())
    sizes = itertools.pairwise(LAYER_SIZES)
    parameters = tuple((draw(k, size), jnp.zeros(size[1])) for draw, k, size in zip(draws, keys, sizes, strict=True))
    return State(parameters, optimizer.init(parameters))


def _optimizer(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """Muon (Jordan and others, 2024) for the weights, Adam for the biases; a short warm-up, then a cosine to zero."""
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, max(1, steps // 50), max(2, steps))
    return muon(rate, weight_decay=recipe.weight_decay)


def _compiled_epoch(recipe: Recipe, optimizer: optax.GradientTransformation) -> Callable[..., tuple[State, jax.Array]]:
    def update(state: State, pixels: jax.Array, labels: jax.Array) -> tuple[State, jax.Array]:
        value, slope = jax.value_and_grad(partial(loss, recipe))(state.parameters, pixels, labels)
        change, optimizer_state = optimizer.update(slope, state.optimizer, state.parameters)
        return State(optax.apply_updates(state.parameters, change), optimizer_state), value

    def epoch(states: State, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[State, jax.Array]:
        steps = len(images) // recipe.batch
        for_order, for_images = jax.random.split(key)
        order = jax.random.permutation(for_order, len(images))[: steps * recipe.batch].reshape(steps, recipe.batch)

        def step(states: State, drawn: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            rows, key = drawn
            pixels = distort(key, images[rows], recipe.distortion) / 255.0
            return jax.vmap(update, in_axes=(0, None, None))(states, pixels, labels[rows])

        states, losses = jax.lax.scan(step, states, (order, jax.random.split(for_images, steps)))
        return states, losses.mean(axis=0)

    return jax.jit(epoch)


@partial(jax.jit, static_argnums=0)
def _digits(activation: Activation, parameters: Parameters, images: jax.Array) -> jax.Array:
    """Return the digit of each seed for each image, (seeds, n)."""
    every = jax.vmap(partial(logits, activation), in_axes=(0, None))(parameters, images / jnp.float32(255))
    return every.argmax(axis=-1)


def _accuracy(activation: Activation, parameters: Parameters, examples: Examples) -> Doubles:
    read = np.asarray(_digits(activation, parameters, jnp.asarray(examples.images)))
    right: Doubles = np.mean(read == examples.labels, axis=1)
    return right
