"use strict";
// What the pages of a node and of a cluster have in common. Each calls `start` with what is its own.
const find = id => document.getElementById(id);
const KEY = "ebbtide-token";
let paused = false, asking = false, page = null, newest = null;

/** Makes an element. Texts are texts: names are chosen by others. */
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "rect", "text", "polyline", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") element.style.cssText = value;
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}
const cell = (text, number) => make("td", number ? { class: "number" } : {}, text);
const hues = ["#0b6bcb", "#c2571a", "#1a7f4b", "#8a3ffc", "#b3261e", "#00798c", "#9a6200", "#c2185b"];
const several = (number, name) => number + " " + name + (number === 1 ? "" : "s");
const bare = address => address.split("/")[0];
const moment = milliseconds => new Date(milliseconds).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });

function count(number) {
  if (number < 1e6) return Math.round(number).toLocaleString("en");
  return number < 1e9 ? (number / 1e6).toFixed(1) + " M" : number.toExponential(1);
}

/** A part of a bar. One that is not empty is seen. */
const part = (number, total, colour) => make("i", { style: "background:var(--" + colour + ");flex:" + (total ? number / total : 0) + " 0 " + (number ? "2px" : "0") });

/** Says how all is. Words that stay the same are not read out again. */
function say(text, colour, title = "") {
  const state = find("state");
  if (state.textContent !== text) state.textContent = text;
  state.className = "pill " + colour;
  state.title = title;
}

/** Puts new elements in the place of old ones; what had the keyboard's focus has it again, wherever the page is scrolled to. */
function redraw(id, elements) {
  const focused = document.activeElement?.dataset?.key;
  find(id).replaceChildren(...elements);
  if (focused) document.querySelector('[data-key="' + CSS.escape(focused) + '"]')?.focus({ preventScroll: true });
}

/** Takes the token out of the address, where it would be seen, and remembers it as long as this tab lives. */
function takeToken() {
  const brought = /^#token=([0-9a-f]+)$/.exec(location.hash);
  if (!brought) return;
  sessionStorage.setItem(KEY, brought[1]);
  history.replaceState(null, "", location.pathname);
}

/** Says that there is nothing to show without a token. */
function lock() {
  find("closed").hidden = false;
  say("no token", "warn");
  for (const section of document.querySelectorAll("main > section:not(#closed)")) section.classList.add("shut");
}

async function round() {
  if (paused || asking || document.hidden) return;
  const token = sessionStorage.getItem(KEY);
  if (!token) { lock(); return; }
  asking = true;
  try {
    const answer = await fetch(page.data, { cache: "no-store", headers: { Authorization: "Bearer " + token }, signal: AbortSignal.timeout(page.patience) });
    if (answer.status === 403) { sessionStorage.removeItem(KEY); lock(); return; }
    if (!answer.ok) throw new Error(page.who + " answers " + answer.status + ": " + await answer.text());
    const data = await answer.json();
    find("closed").hidden = true;
    find("state").title = "";
    for (const section of document.querySelectorAll(".shut")) section.classList.remove("shut");
    newest = Date.now();
    page.news(data);
  } catch (error) {
    say("no answer", "bad", String(error));
  } finally {
    asking = false;
  }
}

function pause() {
  paused = !paused;
  find("pause").setAttribute("aria-pressed", String(paused));
  find("pause").textContent = paused ? "Go on" : "Pause";
  round();
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
}

/**
 * Starts a page: `data` is where its data is, asked for every `pause` milliseconds by answers that may take `patience`;
 * `who` answers; `news` draws it; `filter` draws what the filter is about; `close` is for Escape; arrow keys go between
 * elements of the class `among`.
 */
function start(own) {
  page = own;
  setInterval(round, page.pause);
  setInterval(() => { find("age").textContent = newest ? Math.round((Date.now() - newest) / 1000) + " s old" : ""; }, 1000);
  document.addEventListener("visibilitychange", round);
  addEventListener("hashchange", () => { takeToken(); round(); });
  find("filter").addEventListener("input", () => newest && page.filter());
  find("pause").addEventListener("click", pause);
  find("theme").addEventListener("click", theme);
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") { page.close(); return; }
    if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "p") pause();
    else if (event.key === "t") theme();
    else if (event.key === "/") { event.preventDefault(); find("filter").focus(); }
    else if (["ArrowLeft", "ArrowRight"].includes(event.key) && event.target.matches("." + page.among)) {
      const all = [...document.querySelectorAll("." + page.among)];
      all[all.indexOf(event.target) + (event.key === "ArrowRight" ? 1 : -1)]?.focus();
    }
  });
  takeToken();
  round();
}
