// Small figures in plain SVG. Each has a label that describes it in words.

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const round1 = (value) => Math.round(value * 10) / 10;
const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${round1(x)} ${round1(y)}`).join("");

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) found.push(Number(value.toFixed(6)));
  return found;
}

// series: [{values: [[round, value] …], line: class, dots: class or null, name: text at its end or null, gap: values of the line up to which an area is filled}]
export function lineChart({ series, level, rounds, low, high, label, width = 320, height = 250, names = 0 }) {
  const [left, right, top, bottom] = [30, 10 + names, 10, 36];
  const x = (round) => left + (round / Math.max(1, rounds)) * (width - left - right);
  const y = (value) => top + (1 - (Math.max(low, value) - low) / (high - low)) * (height - top - bottom);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of ticks(low, high, 4)) {
    svg.append(draw("path", { class: "grid", d: path([[left, y(tick)], [width - right, y(tick)]]) }));
    svg.append(draw("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of ticks(0, rounds, 6).filter(Number.isInteger)) {
    svg.append(draw("text", { x: x(tick), y: height - 20, "text-anchor": "middle" }, String(tick)));
  }
  svg.append(draw("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "round"));
  if (level !== null && level !== undefined) {
    svg.append(draw("path", { class: "line zero-line", d: path([[x(0), y(level)], [x(rounds), y(level)]]) }));
  }
  const ends = [];
  for (const one of series) {
    const points = one.values.map(([round, value]) => [x(round), y(value)]);
    if (!points.length) continue;
    if (one.gap) svg.append(draw("path", { class: "gap", d: `${path([...points, ...one.gap.map(([round, value]) => [x(round), y(value)]).reverse()])}Z` }));
    svg.append(draw("path", { class: `line ${one.line}`, d: path(points) }));
    if (one.dots) for (const [cx, cy] of points) svg.append(draw("circle", { class: one.dots, cx: round1(cx), cy: round1(cy), r: 3 }));
    if (one.name) ends.push({ name: one.name, whose: one.whose ?? "", at: points.at(-1) });
  }
  ends.sort((a, b) => a.at[1] - b.at[1]);
  let last = -Infinity;
  for (const end of ends) {
    const [x1, y1] = end.at;
    last = Math.max(y1 + 4, last + 12); // one below the other if lines end close together
    if (last - 4 > y1 + 1) svg.append(draw("path", { class: "grid", fill: "none", d: path([[x1 + 4, y1], [x1 + 12, last - 4]]) }));
    svg.append(draw("text", { x: x1 + 15, y: round1(last), class: `name ${end.whose}` }, end.name));
  }
  return svg;
}

// Places for the badges, so that no badge hides another one, a point or the centre: each starts at its point and is pushed away.
function apart(points, centre, width, height) {
  const mean = [0, 1].map((k) => points.reduce((sum, point) => sum + point[k], 0) / points.length);
  const badges = points.map(([x, y], i) => {
    const turn = (2 * Math.PI * i) / points.length;
    const [dx, dy] = [x - mean[0] + Math.cos(turn), y - mean[1] + Math.sin(turn)];
    const length = Math.hypot(dx, dy);
    return [x + (22 * dx) / length, y + (22 * dy) / length];
  });
  for (let turn = 0; turn < 200; turn++) {
    badges.forEach((badge, i) => {
      const others = [...badges.filter((_, k) => k !== i).map((one) => [one, 30]), ...points.map((one) => [one, 20]), [centre, 26]];
      for (const [[x, y], least] of others) {
        const [dx, dy] = [badge[0] - x || 0.1, badge[1] - y || 0.1];
        const length = Math.hypot(dx, dy);
        if (length >= least) continue;
        badge[0] += ((least - length) / 2) * (dx / length);
        badge[1] += ((least - length) / 2) * (dy / length);
      }
      badge[0] = Math.min(width - 16, Math.max(16, badge[0]));
      badge[1] = Math.min(height - 16, Math.max(16, badge[1]));
    });
  }
  return badges;
}

// The prompts in a plane. trails: for p_G and each client, [[x, y] by round].
export class PromptMap {
  constructor(place, [width, height]) {
    Object.assign(this, { place, width, height });
    this.spots = [];
  }

  show(trails, label) {
    const { width, height } = this;
    const kept = 5; // rounds
    const recent = trails.map((trail) => trail.slice(-kept));
    const reach = 1.18 * Math.max(0.02, ...recent.flat().map(([x, y]) => Math.max(Math.abs(x) * (height / width), Math.abs(y))));
    const at = ([x, y]) => [width / 2 + (x / reach) * (height / 2), height / 2 - (y / reach) * (height / 2)];
    if (!this.svg || this.spots.length !== trails.length) this.begin(trails.length, width, height);
    this.svg.setAttribute("aria-label", label);
    this.rings.replaceChildren();
    for (const tick of ticks(0, reach * 1.2, 4).slice(1)) {
      const radius = (tick / reach) * (height / 2);
      if (radius > height / 2 - 8) continue;
      this.rings.append(draw("circle", { class: "grid", cx: width / 2, cy: height / 2, r: round1(radius), fill: "none" }));
      this.rings.append(draw("text", { x: width / 2 + 4, y: round1(height / 2 - radius + 13) }, `distance ${tick}`));
    }
    const points = recent.map((trail) => at(trail.at(-1)));
    const badges = apart(points, [width / 2, height / 2], width, height);
    trails.forEach((_, i) => {
      this.lines[i].setAttribute("d", path(recent[i].map(at)));
      this.leaders[i].setAttribute("d", path([points[i], badges[i]]));
      this.dots[i].style.transform = `translate(${round1(points[i][0])}px, ${round1(points[i][1])}px)`;
      this.spots[i].style.transform = `translate(${round1(badges[i][0])}px, ${round1(badges[i][1])}px)`;
    });
  }

  begin(count, width, height) {
    this.svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
    this.rings = draw("g");
    const [cx, cy] = [width / 2, height / 2];
    const centre = draw("path", { class: "centre", d: `M${cx - 7} ${cy}h14M${cx} ${cy - 7}v14` });
    const name = draw("text", { x: cx + 9, y: cy + 16, class: "name" }, "CLIP");
    this.lines = [];
    this.leaders = [];
    this.dots = [];
    this.spots = [];
    for (let i = 0; i < count; i++) {
      const whose = i ? `client-${i}` : "shared";
      this.lines.push(draw("path", { class: `trail ${whose}` }));
      this.leaders.push(draw("path", { class: `leader ${whose}` }));
      this.dots.push(draw("circle", { class: `dot ${whose}`, r: 4 }));
      const mark = i ? draw("circle", { r: 12 }) : draw("rect", { x: -13, y: -13, width: 26, height: 26, rx: 5 });
      this.spots.push(draw("g", { class: `spot ${whose}` }, mark, draw("text", { y: 4 }, i ? String(i) : "G")));
    }
    this.svg.append(this.rings, ...this.lines, ...this.leaders, centre, name, ...this.dots, ...this.spots);
    this.place.replaceChildren(this.svg);
  }
}
