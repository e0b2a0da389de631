// The questions of a viewer: a picture, class names, and what all prompts answer.

import { ask } from "./connection.js";
import { Picture } from "./draw.js";
import { at, el, fault, onlyIfNew } from "./page.js";

const SHOWN = 3; // classes shown of an answer
const SETS = { "use-base": ["base"], "use-novel": ["novel"], "use-both": ["base", "novel"] };
const HOW = { drawings: "Draw one, choose a file, or choose a test picture", photographs: "Drop a photograph, or choose a file" };

export class Questions {
  constructor() {
    this.view = null;
    this.truth = null; // the class of the chosen test picture
    this.asking = false;
    this.offered = ""; // the class names that the page has put into the text field
    this.picture = new Picture({
      said: (text) => {
        at("source").textContent = text;
        fault("answer-fault", null);
      },
      failed: (text) => fault("answer-fault", new Error(text)),
    });
    at("question").addEventListener("submit", (event) => {
      event.preventDefault();
      this.classify();
    });
    for (const [id, kinds] of Object.entries(SETS)) {
      at(id).addEventListener("click", () => {
        if (this.view?.setting) at("classes").value = this.offered = kinds.flatMap((kind) => this.view.setting[kind]).join(", ");
      });
    }
  }

  show(view) {
    const before = this.view;
    this.view = view;
    if (before?.subject !== view.subject) {
      this.picture.about(view.subject);
      this.truth = null;
    }
    if (before?.subject !== view.subject || before.server !== view.server) {
      at("answers").replaceChildren();
      at("answer-status").textContent = "";
    }
    onlyIfNew("samples", [view.subject, view.setting], () => this.offer(view.setting));
    const [old, now] = [before?.run, view.run].map((run) => run && [run.number, run.rounds.length].join());
    if (now && now !== old && at("again").checked && at("answers").children.length && !this.asking) this.classify();
  }

  offer(setting) {
    at("tests").hidden = !setting?.samples.length;
    at("samples").replaceChildren(...(setting?.samples ?? []).map(([index, name], i) => this.sample(index, name, i % 2 ? "novel" : "base")));
    if (!setting) return;
    const field = at("classes");
    if (field.value && field.value !== this.offered) return; // the viewer's own
    field.value = this.offered = [...setting.base.slice(0, 8), ...setting.novel.slice(0, 4)].join(", ");
  }

  sample(index, name, kind) {
    const url = `/pictures/test/${index}.png?${this.view.subject}`;
    const input = el("input", { type: "radio", name: "sample", value: index, class: "hidden", "aria-label": `${name}, a ${kind} class` });
    input.addEventListener("change", () => {
      this.truth = name;
      this.picture.use(index, name, url);
    });
    return el("label", { title: name }, input, el("img", { src: url, alt: "", width: 64, height: 64 }));
  }

  async classify() {
    const { subject } = this.view ?? { subject: "drawings" };
    const content = await this.picture.content();
    if (!content) return fault("answer-fault", new Error(`There is no picture yet. ${HOW[subject]}.`));
    const right = content.sample === undefined ? null : this.truth;
    const form = new FormData();
    if (content.image) form.append("image", content.image, "picture");
    else form.append("sample", content.sample);
    form.append("classes", at("classes").value);
    this.asking = true;
    at("answer-status").textContent = "Classifying …";
    try {
      const found = await ask("/api/classify", { method: "POST", body: form });
      if (subject !== this.view.subject) return;
      fault("answer-fault", null);
      answers(found, right);
    } catch (error) {
      fault("answer-fault", error);
      at("answer-status").textContent = "";
    } finally {
      this.asking = false;
    }
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
  const agreed = first.length === 1 ? first[0] : new Set(first).size === 1 ? `all ${first.length} prompts say ${first[0]}` : `${new Set(first).size} different answers from ${first.length} prompts`;
  const when = found.round === null ? "No federation is trained yet. If you start one, its prompts answer, too" : `After round ${found.round}`;
  at("answer-status").textContent = `${when}. Result among ${found.names.length} classes: ${agreed}.`;
}
