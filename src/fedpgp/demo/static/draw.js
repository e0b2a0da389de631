// The picture to classify: a drawing, a chosen, dropped or pasted file, or one of the test pictures.

import { at, el } from "./page.js";

const COLOURS = { black: "#1a1a1a", red: "#e03131", orange: "#f08c00", yellow: "#fcd53f", green: "#2f9e44", blue: "#1c7ed6", brown: "#8b5a2b", white: "#ffffff" };
const HINTS = { drawings: "Draw here, drop a picture, or paste one.", photographs: "Drop a photograph here, paste one, or choose a file." };
const LABELS = {
  drawings: "Drawing area for a pointer. With a keyboard, choose a file or one of the test pictures.",
  photographs: "The photograph. With a keyboard, choose a file.",
};
const LARGEST = 8 * 2 ** 20 - 2 ** 14; // bytes of a picture that the server accepts, without the rest of a request
const MOST_PIXELS = 32e6; // that the server accepts
const READABLE = 64 * 2 ** 20; // bytes of a file that the page reads to make the picture smaller
const SIDE = 2048; // px of the longer side of a picture that was made smaller: more than any CLIP reads

export class Picture {
  // said: called with a description of the picture; failed: called with an error message.
  constructor({ said, failed }) {
    this.canvas = at("canvas");
    this.pen = this.canvas.getContext("2d");
    this.said = said;
    this.failed = failed;
    this.colour = COLOURS.black;
    this.sample = null;
    this.file = null; // the chosen file, if the canvas shows it unchanged
    this.subject = "drawings";
    this.drawn = false;
    this.clear();
    this.palette();
    this.brush();
    this.files();
    at("clear").addEventListener("click", () => this.clear());
  }

  clear() {
    this.pen.fillStyle = "#ffffff";
    this.pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.drawn = false;
    this.other(null);
    this.said(HINTS[this.subject]);
  }

  // Set the kind of the pictures: drawings or photographs.
  about(subject) {
    this.subject = subject;
    this.canvas.setAttribute("aria-label", LABELS[subject]);
    this.clear();
  }

  // Return what to send: a file's bytes or the number of a test picture; null without a picture.
  async content() {
    if (this.sample !== null) return { sample: this.sample };
    if (!this.drawn) return null;
    if (this.file) return { image: this.file };
    return { image: await new Promise((done) => this.canvas.toBlob(done, "image/png")) };
  }

  other(sample) {
    this.sample = sample;
    this.file = null;
    if (sample === null) for (const one of document.querySelectorAll("#samples :checked")) one.checked = false;
  }

  palette() {
    const row = el("div");
    for (const [name, value] of Object.entries(COLOURS)) {
      const input = el("input", { type: "radio", name: "colour", value, class: "hidden", checked: value === this.colour, "aria-label": name });
      const dot = el("span");
      dot.style.background = value;
      input.addEventListener("change", () => (this.colour = value));
      row.append(el("label", { title: name }, input, dot));
    }
    at("colours").append(row);
  }

  brush() {
    const [width, shown] = [at("width"), at("width-value")];
    const say = () => (shown.textContent = `${width.value} px`);
    width.addEventListener("input", say);
    say();
    let last = null;
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
    };
    const line = (to) => {
      this.pen.strokeStyle = this.colour;
      this.pen.lineWidth = Number(width.value);
      this.pen.lineCap = this.pen.lineJoin = "round";
      this.pen.beginPath();
      this.pen.moveTo(...last);
      this.pen.lineTo(...to);
      this.pen.stroke();
      last = to;
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (this.subject !== "drawings" || !event.isPrimary || event.button !== 0) return; // a second finger draws nothing
      this.other(null);
      this.canvas.setPointerCapture(event.pointerId);
      last = place(event);
      line([last[0] + 0.01, last[1]]);
      this.drawn = true;
      this.said("Your drawing.");
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (last && event.isPrimary) for (const one of event.getCoalescedEvents?.() ?? [event]) line(place(one));
    });
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => (last = null));
  }

  files() {
    for (const input of [at("file"), at("camera")]) {
      input.addEventListener("change", () => input.files[0] && this.take(input.files[0]).then(() => (input.value = "")));
    }
    for (const kind of ["dragenter", "dragover"]) {
      document.addEventListener(kind, (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        this.canvas.classList.add("over");
      });
    }
    document.addEventListener("dragleave", (event) => event.relatedTarget || this.canvas.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      this.canvas.classList.remove("over");
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      this.take(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
      if (file) this.take(file);
    });
  }

  // A file is sent unchanged, unless the viewer draws on it or it is too large. The browser must be able to show it.
  async take(file) {
    if (file.size > READABLE) return this.failed(`${file.name} has ${Math.round(file.size / 2 ** 20)} MB, more than the allowed ${READABLE / 2 ** 20} MB. Make it smaller.`);
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      return this.failed(`${file.name} cannot be read as a picture. Choose another file, such as a PNG or JPEG file.`);
    }
    const { width, height } = bitmap;
    const large = file.size > LARGEST || width * height > MOST_PIXELS;
    this.put(bitmap);
    this.drawn = true;
    this.other(null);
    this.file = large ? await smaller(bitmap) : file;
    bitmap.close();
    this.said(large ? `${file.name}, made smaller: it has ${width} × ${height} pixels.` : file.name);
  }

  async use(sample, name, url) {
    this.other(sample);
    this.drawn = true;
    this.said(`A test picture: ${name}.`);
    const image = new Image();
    image.src = url;
    await image.decode().then(() => this.sample === sample && this.put(image), () => {}); // shown only; the server has the picture
  }

  put(image) {
    const { width, height } = this.canvas;
    const [w, h] = [image.naturalWidth ?? image.width, image.naturalHeight ?? image.height];
    const scale = Math.min(width / w, height / h);
    this.pen.fillStyle = "#ffffff";
    this.pen.fillRect(0, 0, width, height);
    this.pen.drawImage(image, (width - w * scale) / 2, (height - h * scale) / 2, w * scale, h * scale);
  }
}

function smaller(bitmap) {
  const canvas = document.createElement("canvas");
  const scale = SIDE / Math.max(bitmap.width, bitmap.height, SIDE);
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#ffffff"; // JPEG has no transparent pixels
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
}
