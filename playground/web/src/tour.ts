// The chapters in the order of the film, and the way between them. Each has an address: `#/sigmoid`.

export const SLUGS = [
  "draw", "pixels", "centring", "neuron", "weights", "sum", "bias", "sigmoid", "layer-1", "layer-2", "outputs",
  "hope", "gallery", "relu", "learning", "change", "service",
] as const;

export type Slug = (typeof SLUGS)[number];

export const TITLES: Record<Slug, string> = {
  draw: "A network reads a digit",
  pixels: "A picture is 784 numbers",
  centring: "Why was my digit moved?",
  neuron: "A neuron holds a number",
  weights: "784 weights, laid over the picture",
  sum: "The weighted sum",
  bias: "The bias",
  sigmoid: "The sigmoid",
  "layer-1": "Layer 1 is one matrix product",
  "layer-2": "Layer 2 does it again",
  outputs: "Ten outputs, one answer",
  hope: "The hope: edges, then loops",
  gallery: "What the neurons really do",
  relu: "Sigmoid and ReLU",
  learning: "Where the weights come from",
  change: "Change the network",
  service: "The same network, served",
};

/** The chapter of an address; the first for an address that is none. */
export function chapterOf(hash: string): Slug {
  const found = SLUGS.find((slug) => hash === `#/${slug}`);
  return found ?? SLUGS[0];
}

export const addressOf = (slug: Slug): string => `#/${slug}`;
export const placeOf = (slug: Slug): number => SLUGS.indexOf(slug);

/** So many chapters further, or back; null where there is none. */
export function neighbour(slug: Slug, by: number): Slug | null {
  return SLUGS[placeOf(slug) + by] ?? null;
}

/** Where a key leads, null for a key that leads nowhere. */
export function chapterForKey(slug: Slug, pressed: string): Slug | null {
  if (pressed === "ArrowRight" || pressed === "PageDown") return neighbour(slug, 1);
  if (pressed === "ArrowLeft" || pressed === "PageUp") return neighbour(slug, -1);
  if (pressed === "Home") return SLUGS[0];
  if (pressed === "End") return SLUGS[SLUGS.length - 1];
  return null;
}

const LEAST_SWIPE = 60; // pixels

/** Where a swipe leads: as on paper, to the left is forward. Null for one that is short, or rather up or down. */
export function chapterForSwipe(slug: Slug, dx: number, dy: number): Slug | null {
  if (Math.abs(dx) < LEAST_SWIPE || Math.abs(dx) < 2 * Math.abs(dy)) return null;
  return neighbour(slug, dx < 0 ? 1 : -1);
}
