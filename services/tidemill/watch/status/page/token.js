// The token: in this module's memory, and nowhere else. What is asked of the service goes through `ask`, which adds it.

import { byId, text } from "./dom.js";

const dialog = byId("token");
const form = dialog.querySelector("form");
const field = form.elements.token;
const problem = byId("token-error");
let token = "";
let given = null;

export const knownToken = () => token;
export const rememberToken = (value) => {
  token = value;
};

/** Fetch a path of the service, with the token where there is one. */
export function ask(path, options = {}, mine = token) {
  // What no header can carry is no token: the service says so.
  const authorization = mine ? { Authorization: `Bearer ${mine.replace(/[^\x21-\x7e]/g, "?")}` } : {};
  return fetch(path, { ...options, headers: { ...authorization, ...options.headers } });
}

/** The sentence that an answer gives for what went wrong. */
export async function problemOf(answer) {
  let detail;
  try {
    ({ detail } = await answer.json());
  } catch {
    // not JSON: from something between here and the service
  }
  if (Array.isArray(detail)) detail = detail.map((d) => d.msg).join("; ");
  const sentence = typeof detail === "string" && detail ? detail : `the server answered ${answer.status}`;
  return `${sentence.charAt(0).toUpperCase()}${sentence.slice(1)}${/[.!?…]$/.test(sentence) ? "" : "."}`;
}

/** Ask for the token that reading needs; `onGiven` is called once somebody has entered one. */
export function askForToken(sentence, onGiven) {
  given = onGiven;
  text(problem, sentence);
  problem.hidden = !sentence;
  field.value = "";
  if (!document.querySelector("dialog[open]")) dialog.showModal();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!field.value.trim()) return;
  token = field.value.trim();
  dialog.close();
  given?.();
});
form.querySelector(".cancel").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  field.value = ""; // not left in the page
});
