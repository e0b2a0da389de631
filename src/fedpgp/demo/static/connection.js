// The connection to the server: requests, and a stream of views that connects again by itself.

const SILENCE = 15_000; // ms without a sign of life, which the server sends every 5 s, after which the connection counts as lost
const PATIENCE = 30_000; // ms until a request without an answer has failed
const LONGEST_WAIT = 8_000; // ms between two attempts to connect

// The name of this tab, so that the page knows its own actions, also after it was loaded again.
export const viewer = window.name ||= Math.random().toString(36).slice(2, 12);

export async function ask(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, { ...options, headers: { ...options.headers, "x-viewer": viewer }, signal: AbortSignal.timeout(PATIENCE) });
  } catch {
    throw new Error("The server does not answer. Check that fedpgp demo is still running.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Object.assign(new Error(content.error ?? `The server answered with status ${answer.status}.`), { status: answer.status });
  return content;
}

export const send = (url, value) => ask(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) });

// show: called with each view; connected: called with null, or with the time at which the connection was lost.
export function listen(show, connected) {
  let [stream, timer, attempts, heard, since] = [null, 0, 0, 0, null];

  const close = () => {
    stream?.close();
    stream = null;
    clearTimeout(timer);
  };
  const alive = () => {
    [heard, attempts] = [Date.now(), 0];
    if (since) connected((since = null));
  };
  const lost = () => {
    close();
    since ??= new Date();
    connected(since);
    timer = setTimeout(open, Math.min(LONGEST_WAIT, 1000 * 2 ** attempts++) * (0.75 + Math.random() / 2));
  };
  const open = () => {
    close();
    if (document.visibilityState === "hidden") return; // a browser opens only six connections to a server, for all of its tabs
    heard = Date.now();
    stream = new EventSource("/api/events");
    stream.onmessage = (event) => {
      alive();
      show(JSON.parse(event.data));
    };
    stream.addEventListener("alive", alive);
    stream.onerror = lost;
  };

  setInterval(() => stream && Date.now() - heard > SILENCE && lost(), 1000);
  document.addEventListener("visibilitychange", () => (document.visibilityState === "hidden" ? close() : open()));
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => event.persisted && open()); // back and forward
  window.addEventListener("online", () => since && open());
  open();
}
