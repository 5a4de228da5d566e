/// <reference types="vitest/config" />
import { defineConfig, type Plugin } from "vite";

/** A page that is opened from disk loads no modules: one classic script, which waits for the document. */
function classicScript(): Plugin {
  return {
    name: "classic-script",
    enforce: "post",
    transformIndexHtml: (html) => html
      .replace(/ type="module" crossorigin src="/g, ' defer src="')
      .replace(/ crossorigin href="/g, ' href="'),
  };
}

export default defineConfig({
  base: "./",
  plugins: [classicScript()],
  build: {
    outDir: "../static",
    emptyOutDir: false, // numbers.js is written by scripts/page_numbers.py
    assetsInlineLimit: 64_000,
    modulePreload: false,
    cssCodeSplit: false,
    rollupOptions: {
      output: { format: "iife", entryFileNames: "page.js", assetFileNames: "[name][extname]" },
    },
  },
  server: {
    proxy: Object.fromEntries(["/numbers.js", "/service", "/network", "/pixels", "/predict", "/burst"]
      .map((path) => [path, "http://127.0.0.1:8080"])),
  },
  test: { include: ["tests/*.test.ts"] },
});
