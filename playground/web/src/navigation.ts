// The way between the chapters: the list at the top, next and back, keys, swipes, and addresses.

import { element, say } from "./dom";
import { addressOf, chapterForKey, chapterForSwipe, chapterOf, neighbour, placeOf, type Slug, SLUGS, TITLES } from "./tour";

export class Navigation {
  chapter: Slug = chapterOf(location.hash);
  private touched: { x: number; y: number } | null = null;

  /** `opened` is told of each chapter that a person goes to. */
  constructor(private readonly opened: (slug: Slug) => void) {
    element("chapters").append(...SLUGS.map(entry));
    addEventListener("hashchange", () => this.open(chapterOf(location.hash)));
    addEventListener("keydown", (event) => this.press(event));
    const menu = element("menu");
    menu.addEventListener("click", () => menu.setAttribute("aria-expanded", String(menu.getAttribute("aria-expanded") !== "true")));
    for (const area of document.querySelectorAll<HTMLElement>(".words, .stage")) this.listenForSwipes(area);
  }

  /** Name the chapter everywhere: title, place, links. */
  show(): void {
    const { chapter } = this;
    document.title = chapter === SLUGS[0] ? TITLES[chapter] : `${TITLES[chapter]} - a network reads a digit`;
    say("title", TITLES[chapter]);
    say("place", placeOf(chapter) ? `${placeOf(chapter)} of ${SLUGS.length - 1}` : "\u00a0");
    for (const one of [document.body, element("main"), element("text")]) one.dataset.chapter = chapter;
    turn("previous", neighbour(chapter, -1));
    turn("next", neighbour(chapter, 1));
    document.querySelectorAll("#chapters a").forEach((link, i) => {
      if (SLUGS[i] === chapter) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    });
    element("menu").setAttribute("aria-expanded", "false");
  }

  private open(slug: Slug): void {
    this.chapter = slug;
    this.opened(slug);
    element("title").focus({ preventScroll: true });
    scrollTo(0, 0);
  }

  private go(slug: Slug | null): void {
    if (slug && slug !== this.chapter) location.hash = addressOf(slug);
  }

  private press(event: KeyboardEvent): void {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target instanceof Element && event.target.closest("input, canvas, pre, .tables")) return;
    const slug = chapterForKey(this.chapter, event.key);
    if (!slug) return;
    event.preventDefault();
    this.go(slug);
  }

  private listenForSwipes(area: HTMLElement): void {
    area.addEventListener("touchstart", ({ touches, target }) => {
      const isControl = target instanceof Element && target.closest("input, .formula, pre");
      this.touched = touches.length === 1 && !isControl ? { x: touches[0].clientX, y: touches[0].clientY } : null;
    }, { passive: true });
    area.addEventListener("touchend", ({ changedTouches: [end] }) => {
      if (this.touched) this.go(chapterForSwipe(this.chapter, end.clientX - this.touched.x, end.clientY - this.touched.y));
      this.touched = null;
    });
  }
}

function entry(slug: Slug, place: number): HTMLElement {
  const item = document.createElement("li"), link = document.createElement("a"), name = document.createElement("span");
  link.href = addressOf(slug);
  link.title = name.textContent = TITLES[slug];
  link.setAttribute("aria-label", TITLES[slug]);
  name.className = "name";
  link.append(place ? String(place) : "\u2302", name);
  item.append(link);
  return item;
}

function turn(id: string, slug: Slug | null): void {
  const link = element<HTMLAnchorElement>(id);
  link.hidden = !slug;
  if (!slug) return;
  link.href = addressOf(slug);
  link.textContent = id === "next" ? TITLES[slug] : "Back";
}
