// The accuracies of a federation, and the pictures of its clients.

import { lineChart } from "./charts.js";
import { at, el, onlyIfNew } from "./page.js";

const FIGURES = { local: "Local", base: "Base", novel: "Novel" };
const ABOUT = { local: "each client on its own classes", base: "on all clients’ classes", novel: "on classes that no client has" };
const UNTRAINED = "–";
const percent = (value) => value.toFixed(1);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
const trained = (run) => run?.rounds.filter((one) => one.shared) ?? [];

export function figures(run) {
  onlyIfNew("figures", [run?.number, run?.choices, run?.zero_shot, trained(run).length], () => {
    at("figures").replaceChildren(...charts(run));
    at("rounds").tBodies[0].replaceChildren(
      ...trained(run).map((one) =>
        el("tr", {}, el("th", { scope: "row" }, String(one.round)), ...[one, one.shared].flatMap((of) => Object.keys(FIGURES).map((key) => el("td", {}, percent(of[key]))))),
      ),
    );
  });
}

function charts(run) {
  const [zero, rounds] = [run?.zero_shot, run?.choices.rounds ?? 12];
  const lines = trained(run);
  const last = lines.at(-1);
  const every = Object.keys(FIGURES).flatMap((key) => [...(zero ? [zero[key]] : []), ...lines.flatMap((one) => [one[key], one.shared[key]])]);
  const low = every.length ? Math.max(0, Math.floor((Math.min(...every) - 4) / 10) * 10) : 0;
  const high = every.length ? Math.min(100, Math.ceil((Math.max(...every) + 2) / 10) * 10) : 100;
  return Object.entries(FIGURES).map(([key, name]) => {
    const now = last ? percent(last[key]) : UNTRAINED;
    const label = last
      ? `${name} after round ${last.round} of ${rounds}: own prompts ${now}, shared prompt ${percent(last.shared[key])}, zero-shot ${percent(zero[key])} percent`
      : `${name}: no round is complete yet`;
    const series = [
      { values: lines.map((one) => [one.round, one.shared[key]]), line: "shared-line", dots: "shared-dot" },
      { values: lines.map((one) => [one.round, one[key]]), line: "own-line", dots: "own-dot" },
    ];
    return el(
      "figure",
      {},
      el("figcaption", {}, el("h4", {}, name, el("span", { class: "now" }, now)), el("p", { class: "soft" }, ABOUT[key])),
      lineChart({ series, level: zero ? zero[key] : null, rounds, low, high, label }),
      el("p", { class: "beside" }, el("span", {}, last ? `shared ${percent(last.shared[key])}` : "shared –"), el("span", {}, zero ? `zero-shot ${percent(zero[key])}` : "zero-shot –")),
    );
  });
}

// held: the data of each client; run: the federation of these clients, or null before the start.
export function clients(held, run, subject) {
  at("mixture").textContent = held && `Heterogeneity “${held.title}”. ${held.about} The bars show Local with the client’s own prompt, and the marks show Local of zero-shot CLIP.`;
  onlyIfNew("cards", [held, subject], () =>
    at("clients").replaceChildren(
      ...(held?.clients ?? []).map((client, i) =>
        el(
          "li",
          { class: `client-${i + 1}` },
          el("h3", {}, el("span", { class: "badge", "aria-hidden": "true" }, String(i + 1)), `Client ${i + 1}`),
          el("div", { class: "thumbs" }, ...client.pictures.map(([index, name]) => el("img", { src: `/pictures/train/${index}.png?${subject}`, alt: name, title: name, width: 64, height: 64 }))),
          el("p", {}, el("b", {}, `${client.examples} pictures`), `: ${classesOf(client.classes)}`),
          el("div", { class: "meter" }),
        ),
      ),
    ),
  );
  const local = run?.rounds.at(-1)?.local_of ?? [];
  document.querySelectorAll(".meter").forEach((place, i) => meter(place, run?.zero_shot?.clients[i], local[i]));
}

function classesOf(classes) {
  const named = classes.slice(0, 6).map(([name, count]) => `${name} ${count}`);
  return named.join(", ") + (classes.length > 6 ? ` and ${classes.length - 6} more classes` : "");
}

function meter(place, zero, local) {
  if (zero === undefined) return place.replaceChildren();
  const now = local ?? zero;
  if (!place.children.length) place.replaceChildren(el("b"), el("span"), el("div", { class: "bar", "aria-hidden": "true" }, el("i"), el("u")));
  const [name, change, bar] = place.children;
  name.textContent = `Local ${percent(now)}`;
  change.className = now < zero - 0.05 ? "down" : "up";
  change.textContent = local === undefined ? "" : signed(now - zero);
  bar.firstChild.style.width = `${now}%`;
  bar.lastChild.style.left = `${zero}%`;
}
