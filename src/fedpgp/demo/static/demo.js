// The page: it shows the server's news as figures, and sends the visitor's choices to the server.
// All texts from a visitor or the server are put into the page as text, never as markup.

import { PromptMap, el, lineChart } from "./charts.js";
import { Picture } from "./draw.js";

const at = (id) => document.getElementById(id);
const FIGURES = { local: "Local", base: "Base", novel: "Novel" };
const ABOUT = { local: "each client on its own classes", base: "on all clients’ classes", novel: "on classes that no client has" };
const SHOWN = 3; // classes shown of an answer
const percent = (value) => value.toFixed(1);
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
const UNTRAINED = "–";

let setting = null; // what does not depend on the federation: positions of the slider, class names, test pictures
let subject = "drawings"; // the chosen images
let run = null; // the shown federation
let phase = "preparing";
let truth = null; // the class of the chosen test picture
let map = new PromptMap(at("map"));

// ------------------------------------------------------------------------------------------------------- the server

async function ask(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Error("The server does not answer. Check that fedpgp demo is still running.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error ?? `The server answered with status ${answer.status}.`);
  return content;
}

function fault(where, error) {
  at(where).textContent = error ? error.message : "";
  at(where).hidden = !error;
}

function listen() {
  const news = new EventSource("/api/events");
  news.onmessage = (event) => show(JSON.parse(event.data));
  news.onerror = () => (at("status").textContent = "No connection. Check that fedpgp demo is still running.");
}

function show(view) {
  phase = view.phase;
  if (view.subject !== subject) change(view.subject);
  if (phase !== "preparing" && phase !== "failed" && !setting) begin();
  const { what, done, total } = view.progress;
  at("progress").max = total || 1;
  at("progress").value = phase === "ready" ? 0 : done;
  at("progress-label").textContent = phase === "preparing" ? `${what}: ${done} of ${total}` : phase === "ready" ? "Ready" : `${done} of ${total} rounds`;
  const busy = phase === "running" || phase === "stopping";
  at("start").disabled = busy || !["ready", "finished", "stopped", "failed"].includes(phase);
  at("stop").disabled = phase !== "running";
  for (const id of ["heterogeneity", "mu", "bottleneck"]) at(id).disabled = busy;
  // The chosen button is not disabled, so it keeps the keyboard's focus. No key can choose the disabled ones.
  for (const one of subjects()) one.disabled = !one.checked && (busy || phase === "preparing");
  fault("fault", view.error ? new Error(view.error) : null);
  if (view.run) follow(view.run);
  at("status").textContent = said(what);
}

function said(what) {
  const last = run?.rounds.at(-1);
  const figures = last?.shared ? `: Local ${percent(last.local)}, Base ${percent(last.base)}, Novel ${percent(last.novel)}` : "";
  if (phase === "running") return last ? `Round ${last.round} of ${run.choices.rounds}${figures}` : "Testing zero-shot CLIP …";
  if (phase === "finished") return `Finished in ${run.seconds.toFixed(1)} s${figures}`;
  if (phase === "stopped") return `Stopped after round ${last.round}`;
  return { preparing: `Preparing: ${what} …`, ready: "Ready to start", stopping: "Stopping after this round …", failed: "Failed" }[phase];
}

function follow(news) {
  const fresh = !run || run.number !== news.number;
  run = { ...news, rounds: fresh ? news.rounds : [...run.rounds, ...news.rounds] };
  if (fresh) {
    for (const name of ["heterogeneity", "mu", "bottleneck"]) at(name).value = run.choices[name];
    values();
    holders(run.clients);
  }
  if (fresh || news.rounds.length || run.zero_shot) figures();
  if (news.rounds.length) {
    prompts();
    if (at("again").checked && at("answers").children.length && !asking) classify();
  }
}

const subjects = () => document.querySelectorAll("#subjects input");

// Remove everything that belongs to the previous images.
function change(to) {
  clearTimeout(waiting);
  subject = to;
  setting = run = truth = null;
  for (const one of subjects()) one.checked = one.value === to;
  document.body.classList.toggle("photographs", to === "photographs");
  picture.about(to);
  for (const id of ["map", "cosines", "words"]) at(id).replaceChildren(el("p", { class: "soft" }, `Start a federation to see the ${id}.`));
  map = new PromptMap(at("map"));
  for (const id of ["answers", "answer-status", "clients", "mixture", "samples"]) at(id).replaceChildren();
  at("classes").value = "";
  figures();
}

// ----------------------------------------------------------------------------------------------------------- figures

function figures() {
  const trained = run ? run.rounds.filter((one) => one.shared) : [];
  const zero = run?.zero_shot;
  const rounds = run?.choices.rounds ?? 12;
  const every = [...(zero ? Object.keys(FIGURES).map((key) => zero[key]) : []), ...trained.flatMap((one) => Object.keys(FIGURES).flatMap((key) => [one[key], one.shared[key]]))];
  const low = every.length ? Math.max(0, Math.floor((Math.min(...every) - 4) / 10) * 10) : 0;
  const high = every.length ? Math.min(100, Math.ceil((Math.max(...every) + 2) / 10) * 10) : 100;
  at("figures").replaceChildren(
    ...Object.entries(FIGURES).map(([key, name]) => {
      const last = trained.at(-1);
      const now = last ? percent(last[key]) : UNTRAINED;
      const words = last
        ? `${name} after round ${last.round} of ${rounds}: own prompts ${now}, shared prompt ${percent(last.shared[key])}, zero-shot ${percent(zero[key])} percent`
        : `${name}: no round is complete yet`;
      const chart = lineChart({
        series: [
          { values: trained.map((one) => [one.round, one.shared[key]]), line: "shared-line", dots: "shared-dot" },
          { values: trained.map((one) => [one.round, one[key]]), line: "own-line", dots: "own-dot" },
        ],
        level: zero ? zero[key] : null,
        rounds,
        low,
        high,
        label: words,
      });
      return el(
        "figure",
        {},
        el("figcaption", {}, el("h3", {}, name, el("span", { class: "now" }, now)), el("p", { class: "soft" }, ABOUT[key])),
        chart,
        el("p", { class: "beside" }, el("span", {}, last ? `shared ${percent(last.shared[key])}` : "shared –"), el("span", {}, zero ? `zero-shot ${percent(zero[key])}` : "zero-shot –")),
      );
    }),
  );
  at("rounds").tBodies[0].replaceChildren(
    ...trained.map((one) =>
      el("tr", {}, el("th", { scope: "row" }, String(one.round)), ...[one, one.shared].flatMap((of) => Object.keys(FIGURES).map((key) => el("td", {}, percent(of[key]))))),
    ),
  );
  run?.clients.clients.forEach((_, i) => meter(i, zero?.clients[i], trained.at(-1)?.local_of[i]));
}

// ----------------------------------------------------------------------------------------------------------- clients

function holders(held) {
  at("mixture").textContent = `Heterogeneity “${held.title}”. ${held.about} The bars show Local with the client’s own prompt, and the marks show Local of zero-shot CLIP.`;
  at("clients").replaceChildren(
    ...held.clients.map((client, i) =>
      el(
        "li",
        { class: `client-${i + 1}` },
        el("h3", {}, el("span", { class: "badge", "aria-hidden": "true" }, String(i + 1)), `Client ${i + 1}`),
        el("div", { class: "thumbs" }, ...client.pictures.map(([index, name]) => el("img", { src: `/pictures/train/${index}.png?${subject}`, alt: name, title: name, width: 64, height: 64 }))),
        el("p", {}, el("b", {}, `${client.examples} pictures`), `: ${classesOf(client.classes)}`),
        el("div", { class: "meter", id: `meter-${i}` }),
      ),
    ),
  );
}

function classesOf(classes) {
  const named = classes.slice(0, 6).map(([name, count]) => `${name} ${count}`);
  return named.join(", ") + (classes.length > 6 ? ` and ${classes.length - 6} more classes` : "");
}

function meter(i, zero, local) {
  const place = at(`meter-${i}`);
  if (!place || zero === undefined) return;
  const now = local ?? zero;
  const bar = el("div", { class: "bar", "aria-hidden": "true" }, el("i"), el("u"));
  const change = el("span", { class: now < zero - 0.05 ? "down" : "up" }, local === undefined ? "" : signed(now - zero));
  if (!place.children.length) place.replaceChildren(el("b"), el("span"), bar);
  place.children[0].textContent = `Local ${percent(now)}`;
  place.children[1].replaceWith(change);
  place.querySelector("i").style.width = `${now}%`;
  place.querySelector("u").style.left = `${zero}%`;
}

let waiting = 0;
function preview() {
  clearTimeout(waiting);
  const about = subject;
  waiting = setTimeout(async () => {
    try {
      const held = await ask(`/api/clients?heterogeneity=${at("heterogeneity").value}`);
      if (about === subject && phase !== "running" && phase !== "stopping") holders(held);
    } catch (error) {
      if (about === subject && phase !== "preparing") fault("fault", error);
    }
  }, 120);
}

// ----------------------------------------------------------------------------------------------------------- prompts

function prompts() {
  const last = run.rounds.at(-1);
  const toGlobal = last.to_global.slice(1);
  const near = last.to_guidance[0].toFixed(3);
  map.show(
    last.map.trails,
    last.round,
    `Round ${last.round}: the shared prompt’s cosine with CLIP’s own text features is ${near}; the clients’ are ` +
      `${last.to_guidance.slice(1).map((value, i) => `client ${i + 1} ${value.toFixed(3)}`).join(", ")}. ` +
      `The plane shows ${Math.round(100 * last.map.shown)} percent of the squared distances.`,
  );
  // The first prompts are random. After some rounds, the axis leaves them out.
  const settled = run.rounds.slice(run.rounds.length > 4 ? 2 : 0).flatMap((one) => [one.to_guidance[0], ...one.to_global.slice(1)]);
  at("cosines").replaceChildren(
    lineChart({
      series: [
        ...toGlobal.map((_, i) => ({ values: run.rounds.map((one) => [one.round, one.to_global[i + 1]]), line: `client-line client-${i + 1}`, whose: `client-${i + 1}`, name: `${i + 1} to G` })),
        { values: run.rounds.map((one) => [one.round, one.to_guidance[0]]), line: "shared-line", dots: "shared-dot", name: "G to CLIP" },
      ],
      rounds: run.choices.rounds,
      low: Math.max(-1, Math.min(0.9, Math.floor(10 * Math.min(...settled)) / 10)),
      high: 1,
      width: at("cosines").clientWidth < 480 ? 360 : 620, // keeps the letters legible on a telephone
      height: 190,
      names: 76,
      label: `Cosines after round ${last.round}: shared prompt and CLIP ${near}; clients’ prompts and the shared prompt ${toGlobal.map((v, i) => `${i + 1}: ${v.toFixed(3)}`).join(", ")}`,
    }),
  );
  words();
}

function words() {
  const last = run?.rounds.at(-1);
  if (!last) return;
  const chosen = Number(at("whose").value);
  const [shared, own] = [last.words[0], last.words[chosen]];
  const row = (found, other) => el("ol", {}, ...found.map((word, i) => el("li", other && word !== other[i] ? { class: "changed" } : {}, word)));
  const changed = own.filter((word, i) => word !== shared[i]).length;
  at("words").replaceChildren(
    el(
      "dl",
      { class: `words client-${chosen}` },
      el("dt", {}, el("span", { class: "badge shared", title: "shared prompt" }, "G")),
      el("dd", {}, row(shared, null)),
      el("dt", {}, el("span", { class: "badge", title: `client ${chosen}` }, String(chosen))),
      el("dd", {}, row(own, shared)),
    ),
    el("p", { class: "soft" }, changed ? `✱ ${changed} of ${own.length} vectors of client ${chosen} have another nearest word.` : `All vectors of client ${chosen} have the same nearest words.`),
  );
}

// ----------------------------------------------------------------------------------------------------- classification

let asking = false;

const picture = new Picture({
  said: (text) => {
    at("source").textContent = text;
    fault("answer-fault", null);
  },
  failed: (text) => fault("answer-fault", new Error(text)),
});

async function classify() {
  const content = await picture.content();
  if (!content) return fault("answer-fault", new Error(`There is no picture yet. ${subject === "drawings" ? "Draw one, choose a file, or choose a test picture" : "Drop a photograph, or choose a file"}.`));
  const form = new FormData();
  if (content.image) form.append("image", content.image, "picture");
  else form.append("sample", content.sample);
  form.append("classes", at("classes").value);
  asking = true;
  at("answer-status").textContent = "Classifying …";
  try {
    const found = await ask("/api/classify", { method: "POST", body: form });
    fault("answer-fault", null);
    answers(found, content.sample === undefined ? null : truth);
  } catch (error) {
    fault("answer-fault", error);
    at("answer-status").textContent = "";
  } finally {
    asking = false;
  }
}

function answers(found, right) {
  at("answers").replaceChildren(
    ...found.models.map(({ model, best }) => {
      const client = /^client (\d+)$/.exec(model)?.[1];
      const kind = client ? `client-${client}` : model === "global" ? "shared" : "zero";
      const title = client ? `Client ${client}’s prompt` : model === "global" ? "Shared prompt" : "Zero-shot CLIP";
      const badge = el("span", { class: `badge ${client ? "" : kind}`, "aria-hidden": "true" }, client ?? (model === "global" ? "G" : "Z"));
      const rows = best.slice(0, SHOWN).map(([name, share]) => {
        const bar = el("div", { class: "bar", "aria-hidden": "true" }, el("i"));
        bar.firstChild.style.width = `${100 * share}%`;
        return el("li", {}, el("span", {}, name, name === right ? el("span", { class: "up" }, " ✓ right") : ""), el("span", {}, `${(100 * share).toFixed(1)} %`), bar);
      });
      return el("li", { class: kind }, el("h3", {}, badge, title), el("ol", {}, ...rows));
    }),
  );
  const first = found.models.map(({ best }) => best[0][0]);
  const agreed = new Set(first).size === 1 ? `all ${first.length} prompts say ${first[0]}` : `${new Set(first).size} different answers from ${first.length} prompts`;
  const when = found.round === null ? "No federation is trained yet. If you start one, its prompts answer, too" : `After round ${found.round}`;
  at("answer-status").textContent = `${when}. Result among ${found.names.length} classes: ${agreed}.`;
}

// ------------------------------------------------------------------------------------------------------------ setting

function values() {
  at("mu-value").textContent = Number(at("mu").value).toFixed(1);
  at("bottleneck-value").textContent = at("bottleneck").value;
  const mixture = setting?.mixtures[at("heterogeneity").value];
  if (!mixture) return;
  at("heterogeneity-value").textContent = mixture.title;
  at("heterogeneity").setAttribute("aria-valuetext", mixture.title);
  at("heterogeneity-about").textContent = mixture.about;
}

async function begin() {
  setting = {};
  const about = subject;
  let found = null;
  try {
    found = await ask("/api/setting");
  } catch (error) {
    fault("fault", error);
  }
  if (about !== subject) return; // a visitor has chosen other images in the meantime
  setting = found;
  if (!found) return;
  at("subject-about").textContent = setting.about;
  at("heterogeneity").max = setting.mixtures.length - 1;
  values();
  if (!run) preview();
  if (!at("classes").value) at("classes").value = [...setting.base.slice(0, 8), ...setting.novel.slice(0, 4)].join(", ");
  at("tests").hidden = !setting.samples.length;
  at("samples").replaceChildren(
    ...setting.samples.map(([index, name], i) => {
      const url = `/pictures/test/${index}.png?${subject}`;
      const input = el("input", { type: "radio", name: "sample", value: index, class: "hidden", "aria-label": `${name}, a ${i % 2 ? "novel" : "base"} class` });
      input.addEventListener("change", () => {
        truth = name;
        picture.use(index, name, url);
      });
      return el("label", { title: name }, input, el("img", { src: url, alt: "", width: 64, height: 64 }));
    }),
  );
}

at("whose").append(...[1, 2, 3, 4, 5, 6].map((i) => el("option", { value: i }, `client ${i}`)));
at("whose").addEventListener("change", words);
for (const id of ["mu", "bottleneck", "heterogeneity"]) at(id).addEventListener("input", values);
at("heterogeneity").addEventListener("input", preview);
for (const one of subjects()) {
  one.addEventListener("change", async () => {
    clearTimeout(waiting); // the server cannot answer while it prepares the other images
    try {
      await ask("/api/subject", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(one.value) });
    } catch (error) {
      fault("fault", error);
      for (const other of subjects()) other.checked = other.value === subject;
    }
  });
}
at("settings").addEventListener("submit", async (event) => {
  event.preventDefault();
  const choices = { mu: Number(at("mu").value), bottleneck: Number(at("bottleneck").value), heterogeneity: Number(at("heterogeneity").value) };
  at("start").disabled = true;
  try {
    await ask("/api/start", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(choices) });
  } catch (error) {
    fault("fault", error);
    at("start").disabled = false;
  }
});
at("stop").addEventListener("click", () => ask("/api/stop", { method: "POST" }).catch((error) => fault("fault", error)));
at("question").addEventListener("submit", (event) => {
  event.preventDefault();
  classify();
});
for (const [id, kinds] of Object.entries({ "use-base": ["base"], "use-novel": ["novel"], "use-both": ["base", "novel"] })) {
  at(id).addEventListener("click", () => setting?.base && (at("classes").value = kinds.flatMap((kind) => setting[kind]).join(", ")));
}
values();
figures();
listen();
