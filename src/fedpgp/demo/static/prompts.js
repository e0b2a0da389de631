// How the prompts move: cosines, a map, and the words nearest to the prompts.

import { PromptMap, lineChart } from "./charts.js";
import { at, el, onlyIfNew } from "./page.js";

const WIDE = 480; // px from which a figure is drawn wide; narrower figures keep the letters legible on a telephone
const CLOSE = 0.99; // cosine above which a client's prompt counts as close to the shared prompt
const cosine = (value) => (value === undefined ? "–" : value.toFixed(3));
const empty = (what) => el("p", { class: "soft" }, `Start a federation to see the ${what}.`);

let shown = null; // the last view
let map = null;

at("whose").append(el("option", { value: 0 }, "the farthest client"), ...[1, 2, 3, 4, 5, 6].map((i) => el("option", { value: i }, `client ${i}`)));
at("whose").addEventListener("change", () => prompts(shown));

// The chosen client, or the one whose prompt is farthest from the shared prompt; the first one while all are close.
function chosen(last) {
  if (at("whose").value !== "0") return Number(at("whose").value);
  const near = last?.to_global ?? [1];
  const least = Math.min(...near);
  return least < CLOSE ? near.indexOf(least) : 1;
}

export function prompts(view) {
  shown = view;
  const last = view?.run?.rounds.at(-1);
  const whose = chosen(last);
  onlyIfNew("prompts", [view?.server, view?.run?.number, last, view?.before, whose, at("apart").clientWidth < WIDE], () => {
    at("apart").className = `client-${whose}`;
    at("apart").replaceChildren(...apart(view?.run, view?.before, whose));
    at("words").replaceChildren(...(last ? words(last, whose) : [empty("words")]));
    if (last) position(last);
    else at("map").replaceChildren(empty("map"));
    if (!last) map = null;
  });
}

function apart(run, before, whose) {
  const rounds = run?.rounds ?? [];
  const last = rounds.at(-1);
  const earlier = before?.rounds.find((one) => one.round === last?.round);
  const shared = (all) => all.map((one) => [one.round, one.to_guidance[0]]);
  const own = (all) => all.map((one) => [one.round, one.to_guidance[whose]]);
  // The first prompts are random, and far from CLIP. After some rounds, the axis and the lines leave them out.
  const lower = (one) => Math.min(one.to_guidance[0], one.to_guidance[whose]);
  const settled = [...rounds.slice(rounds.length > 4 ? 2 : 0), ...(before?.rounds.slice(2) ?? [])].map(lower);
  const low = settled.length ? Math.max(-1, Math.min(0.9, Math.floor(10 * Math.min(...settled)) / 10)) : 0;
  const [now, past] = [rounds, before?.rounds ?? []].map((all) => all.filter((one) => lower(one) >= low));
  const figure = (name, of) => el("div", {}, el("dt", {}, ...name), el("dd", {}, el("b", {}, cosine(last && of(last))), earlier ? el("span", {}, ` before ${cosine(of(earlier))}`) : ""));
  const facts = [
    figure(["shared prompt and CLIP"], (one) => one.to_guidance[0]),
    figure([`client ${whose}’s prompt and CLIP`], (one) => one.to_guidance[whose]),
    figure([`client ${whose}’s and the shared prompt`], (one) => one.to_global[whose]),
  ];
  const chart = lineChart({
    series: [
      { values: shared(past), line: "shared-line earlier" },
      { values: own(past), line: "client-line earlier" },
      { values: own(now), line: "client-line", dots: "client-dot", name: `client ${whose}`, whose: `client-${whose}`, gap: shared(now) },
      { values: shared(now), line: "shared-line", dots: "shared-dot", name: "shared" },
    ],
    rounds: run?.choices.rounds ?? 12,
    low,
    high: 1,
    width: at("apart").clientWidth < WIDE ? 360 : 660,
    height: 230,
    names: 66,
    label: last
      ? `Cosines after round ${last.round} with μ ${run.choices.mu}: shared prompt and CLIP ${cosine(last.to_guidance[0])}, client ${whose}’s prompt and CLIP ${cosine(last.to_guidance[whose])}, both prompts ${cosine(last.to_global[whose])}`
      : "Cosines: no federation is running yet",
  });
  const note = `Cosine of the text features of a prompt and of CLIP’s “a photo of a …”, as a mean over the base classes. With 1, a prompt changes nothing.${
    before ? ` The dashed lines belong to the federation with ${settings(before.choices)}.` : ""
  }`;
  return [chart, el("dl", { class: "facts" }, ...facts), el("p", { class: "soft" }, note)];
}

function settings({ mu, bottleneck, heterogeneity }) {
  const title = shown.setting?.mixtures[heterogeneity].title;
  return `μ ${mu.toFixed(1)}, b ${bottleneck} and heterogeneity “${title}”`;
}

function position(last) {
  map ??= new PromptMap(at("map"), at("map").clientWidth < WIDE ? [340, 320] : [520, 440]);
  map.show(
    last.map.trails,
    `Round ${last.round}: the shared prompt’s cosine with CLIP’s own text features is ${cosine(last.to_guidance[0])}; the clients’ are ` +
      `${last.to_guidance.slice(1).map((value, i) => `client ${i + 1} ${cosine(value)}`).join(", ")}. ` +
      `The plane shows ${Math.round(100 * last.map.shown)} percent of the squared distances.`,
  );
}

function words(last, whose) {
  const [shared, own] = [last.words[0], last.words[whose]];
  const row = (found, other) => el("ol", {}, ...found.map((word, i) => el("li", other && word !== other[i] ? { class: "changed" } : {}, word)));
  const changed = own.filter((word, i) => word !== shared[i]).length;
  return [
    el(
      "dl",
      { class: `words client-${whose}` },
      el("dt", {}, el("span", { class: "badge shared", role: "img", "aria-label": "shared prompt" }, "G")),
      el("dd", {}, row(shared, null)),
      el("dt", {}, el("span", { class: "badge", role: "img", "aria-label": `client ${whose}` }, String(whose))),
      el("dd", {}, row(own, shared)),
    ),
    el("p", { class: "soft" }, changed ? `✱ ${changed} of ${own.length} vectors of client ${whose} have another nearest word.` : `All vectors of client ${whose} have the same nearest words.`),
  ];
}
