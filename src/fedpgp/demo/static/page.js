// Helpers to change the page. A string always becomes text, even if it has markup.

export const at = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function fault(where, error) {
  at(where).textContent = error ? error.message : "";
  at(where).hidden = !error;
}

const shown = {};

// Draw a part of the page if what it shows has changed. A part that stays keeps the keyboard's focus.
export function onlyIfNew(part, content, draw) {
  const text = JSON.stringify(content);
  if (shown[part] === text) return;
  shown[part] = text;
  draw();
}
