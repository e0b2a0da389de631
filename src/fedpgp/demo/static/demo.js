// The page. All federations run on the server, which sends a view after every change. The page shows the last view that it received.
// A viewer's own are only the sliders before a start, the picture and the class names. All texts are put into the page as text, never as markup.

import { Questions } from "./classify.js";
import { ask, listen, send, viewer } from "./connection.js";
import { clients, figures } from "./federation.js";
import { at, fault, onlyIfNew } from "./page.js";
import { prompts } from "./prompts.js";

const SLIDERS = ["mu", "bottleneck", "heterogeneity"];
const BUSY = ["running", "restarting", "stopping"];
const PAUSE = 300; // ms after the last move of a slider

let view = null; // the last view
let moved = false; // whether this viewer has moved a slider, and no federation has started with its value
let preview = null; // the clients' pictures at a position of the slider that no federation has
let restarted = false; // whether the server was started again, which ended the federation that this page had shown
const questions = new Questions();

const subjects = () => document.querySelectorAll("#subjects input");
const number = (value) => value.toFixed(1);
const choices = () => Object.fromEntries(SLIDERS.map((name) => [name, Number(at(name).value)]));
const enabled = (button) => button.getAttribute("aria-disabled") === "false";

function show(next) {
  const before = view;
  view = next;
  const { phase, run, subject } = view;
  if (before && before.server !== view.server) restarted = true;
  if (before && (before.server !== view.server || before.subject !== subject || before.run?.number !== run?.number)) {
    preview = null;
    fault("refused", null);
    if (view.action.by !== viewer || !run) moved = false;
  }
  if (view.action.by) restarted = false;
  if (run && !moved) for (const name of SLIDERS) at(name).value = run.choices[name];
  if (run && SLIDERS.every((name) => Number(at(name).value) === run.choices[name])) moved = false;
  document.body.classList.toggle("photographs", subject === "photographs");
  controls();
  values();
  for (const one of subjects()) {
    one.checked = one.value === subject;
    // The chosen button is not disabled, so it keeps the keyboard's focus. No key can choose the disabled ones.
    one.disabled = !one.checked && (BUSY.includes(phase) || phase === "preparing");
  }
  at("subject-about").textContent = view.setting?.about ?? "";
  if (!run && !preview) look();
  figures(run);
  held();
  prompts(view);
  questions.show(view);
}

function controls() {
  const { phase, run, action, error } = view;
  const { what, done, total } = view.progress;
  at("progress").max = total || 1;
  at("progress").value = phase === "ready" ? 0 : done;
  at("progress-label").textContent = phase === "preparing" ? `${what}: ${done} of ${total}` : phase === "ready" ? "Ready" : `${done} of ${total} rounds`;
  at("start").setAttribute("aria-disabled", !["ready", "finished", "stopped", "failed"].includes(phase));
  at("stop").setAttribute("aria-disabled", !["running", "restarting"].includes(phase));
  fault("fault", error ? new Error(error) : null);
  at("status").textContent = said(what);
  const who = action.by === viewer ? "You" : "Another viewer";
  at("action").textContent = restarted
    ? "The server was started again. The earlier federation is gone; press Start to train a new one."
    : action.by ? `${who} ${action.what}.` : "";
  at("action").hidden = !at("action").textContent;
  const step = !run ? 0 : BUSY.includes(phase) && !view.before ? 1 : !view.before ? 2 : 3;
  [...at("steps").children].forEach((one, i) => (i === step ? one.setAttribute("aria-current", "step") : one.removeAttribute("aria-current")));
}

function said(what) {
  const { phase, run } = view;
  const last = run?.rounds.at(-1);
  const reached = last?.shared ? `: Local ${number(last.local)}, Base ${number(last.base)}, Novel ${number(last.novel)}` : "";
  if (phase === "running") return last ? `Round ${last.round} of ${run.choices.rounds}${reached}` : "Testing zero-shot CLIP …";
  if (phase === "finished") return `Finished in ${number(run.seconds)} s${reached}${moved ? ". Press Start to train with the new settings" : ""}`;
  if (phase === "stopped") return `Stopped after round ${last.round}`;
  return { preparing: `Preparing: ${what} …`, ready: "Ready to start", restarting: "Starting again after this round …", stopping: "Stopping after this round …", failed: "Failed" }[phase];
}

function connected(since) {
  const lost = since !== null;
  at("connection").textContent = lost
    ? `No connection to the server since ${since.toLocaleTimeString()}. This page tries to connect again every few seconds. If you have stopped fedpgp demo, start it again on the same port.`
    : "";
  at("connection").hidden = !lost;
  if (lost) at("status").textContent = "No connection";
  else if (view) controls();
}

function values() {
  at("mu-value").textContent = number(Number(at("mu").value));
  at("bottleneck-value").textContent = at("bottleneck").value;
  const mixture = view?.setting?.mixtures[at("heterogeneity").value];
  if (!mixture) return;
  at("heterogeneity-value").textContent = mixture.title;
  at("heterogeneity").setAttribute("aria-valuetext", mixture.title);
  at("heterogeneity-about").textContent = mixture.about;
}

function held() {
  const shown = preview ?? view.run?.clients;
  const ofRun = preview ? null : view.run;
  onlyIfNew("clients", [view.server, view.subject, shown, ofRun?.zero_shot, ofRun?.rounds.at(-1)?.local_of], () => clients(shown, ofRun, view.subject));
}

// Ask what the clients would have at this position of the slider.
async function look() {
  const { subject, setting, server } = view;
  if (!setting) return;
  const heterogeneity = at("heterogeneity").value;
  if (view.run?.choices.heterogeneity === Number(heterogeneity)) {
    preview = null;
    return held();
  }
  try {
    const found = await ask(`/api/clients?heterogeneity=${heterogeneity}`);
    if (subject !== view.subject || server !== view.server || BUSY.includes(view.phase) || heterogeneity !== at("heterogeneity").value) return;
    preview = found;
    held();
  } catch (error) {
    if (view.phase !== "preparing") fault("refused", error);
  }
}

async function attempt(request) {
  fault("refused", null);
  try {
    await request();
  } catch (error) {
    fault("refused", error);
    if (error.status === 409) moved = false; // another viewer was faster
    if (view) show(view); // the buttons and sliders as the server has them
  }
}

let waiting = 0;
function move() {
  moved = true;
  values();
  if (view) at("status").textContent = said(view.progress.what);
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if (!view || !moved) return;
    if (["running", "restarting"].includes(view.phase)) attempt(() => send(`/api/start?replaces=${view.run.number}`, choices()));
    else if (!BUSY.includes(view.phase)) look();
  }, PAUSE);
}

for (const name of SLIDERS) at(name).addEventListener("input", move);
for (const one of subjects()) one.addEventListener("change", () => attempt(() => send("/api/subject", one.value)));
at("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!enabled(at("start"))) return;
  at("start").setAttribute("aria-disabled", true); // until the next view
  attempt(() => send("/api/start", choices()));
});
at("stop").addEventListener("click", () => enabled(at("stop")) && attempt(() => send("/api/stop", null)));
values();
figures(null);
prompts(null);
listen(show, connected);
