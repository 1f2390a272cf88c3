// Renews pages that live, and adds the keyboard and the slider. Without it every page can be read all the same.
"use strict";
const content = () => document.getElementById("content");
let paused = false, at = -1, chosen = null;

const busy = () => {
  const focused = document.activeElement, selected = String(getSelection());
  return document.hidden || paused || selected !== "" || (focused && focused.matches("main input, main button"));
};

async function renew() {
  const seconds = Number(content().dataset.live || 0);
  if (seconds && !busy()) {
    const asked = location.href;
    try {
      const answer = await fetch(asked, { headers: { accept: "text/html" }, signal: AbortSignal.timeout(20000) });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById("content");
      if (!fresh) throw new Error("It is no page of the console: the token is another one, or a proxy answers.");
      if (asked === location.href && !busy()) {
        const focused = document.activeElement && document.activeElement.getAttribute("href");
        const scrolled = [...content().querySelectorAll(".wide")].map((each) => each.scrollLeft);
        content().replaceWith(document.adoptNode(fresh));
        content().querySelectorAll(".wide").forEach((each, number) => { each.scrollLeft = scrolled[number] || 0; });
        if (focused) content().querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
        slider();
      }
      say("");
    } catch {
      say("The console does not answer; the page is as it was.");
    }
  }
  setTimeout(renew, Math.max(1, Number(content().dataset.live || 2)) * 1000);
}

function say(text) {
  let shown = document.getElementById("said");
  if (!shown) {
    shown = Object.assign(document.createElement("span"), { id: "said", className: "paused" });
    shown.setAttribute("role", "status");
    document.querySelector("footer").prepend(shown);
  }
  shown.textContent = paused ? "Paused; p goes on." : text;
}

function slider() {
  const place = content().querySelector("[data-slider]"), steps = [...content().querySelectorAll(".steps > li")];
  if (!place || steps.length < 2) return;
  const range = Object.assign(document.createElement("input"), { type: "range", min: 1, max: steps.length });
  const all = Object.assign(document.createElement("button"), { textContent: "All", type: "button" });
  range.setAttribute("aria-label", "Step in time");
  range.value = chosen ?? steps.length;
  const show = (only) => steps.forEach((each, number) => { each.hidden = only && number + 1 !== Number(range.value); });
  range.addEventListener("input", () => { chosen = range.value; show(true); });
  all.addEventListener("click", () => show(false));
  place.replaceChildren(range, all);
  show(true);
}

function row(step) {
  const rows = [...content().querySelectorAll("tbody tr")];
  if (!rows.length) return;
  rows[at]?.classList.remove("at");
  at = Math.min(rows.length - 1, Math.max(0, at + step));
  rows[at].classList.add("at");
  (rows[at].querySelector("a") || rows[at]).focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const pages = document.querySelectorAll("header nav a"), range = content().querySelector("[data-slider] input");
  if (event.key >= "1" && event.key <= String(pages.length)) pages[Number(event.key) - 1].click();
  else if (event.key === "/") document.querySelector("header input").focus();
  else if (event.key === "j") row(1);
  else if (event.key === "k") row(-1);
  else if (event.key === "p") { paused = !paused; say(""); }
  else if (range && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    range.value = Number(range.value) + (event.key === "ArrowRight" ? 1 : -1);
    range.dispatchEvent(new Event("input"));
  } else return;
  event.preventDefault();
});

slider();
setTimeout(renew, 1000);
