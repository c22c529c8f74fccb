// Look up one prediction with all that made it, or one entity's online features. Linked to by #prediction=ID and #entity=ID.

import { byId, el, text } from "./dom.js";
import { showEntity, showPrediction } from "./provenance.js";
import { ask, problemOf } from "./token.js";

const KINDS = {
  prediction: { path: "/api/predictions/", label: "Event id", show: showPrediction },
  entity: { path: "/api/entities/", label: "Entity id", show: showEntity },
};
const form = byId("lookup-form");
const result = byId("lookup-result");
let running = null;

/** Begin to listen to the form, and to the address. */
export function startLookup() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const id = form.elements.id.value.trim();
    if (!id) {
      say("Enter an id.");
      form.elements.id.focus();
      return;
    }
    const wanted = `#${form.elements.kind.value}=${encodeURIComponent(id)}`;
    if (location.hash === wanted) find(form.elements.kind.value, id);
    else location.hash = wanted; // the address leads to the search, so that it can be shared
  });
  form.addEventListener("change", () => text(byId("lookup-label"), KINDS[form.elements.kind.value].label));
  addEventListener("hashchange", fromAddress);
  fromAddress();
}

function fromAddress() {
  const found = /^#(prediction|entity)=(.+)$/s.exec(location.hash);
  if (!found) return;
  let id;
  try {
    id = decodeURIComponent(found[2]);
  } catch {
    id = found[2];
  }
  form.elements.kind.value = found[1];
  form.elements.id.value = id;
  text(byId("lookup-label"), KINDS[found[1]].label);
  intoSight();
  find(found[1], id).then(intoSight);
}

/** Bring what the address asks for into sight; again when the panels above it have got their size. */
export function intoSight() {
  if (/^#(prediction|entity)=/.test(location.hash)) byId("look-up").scrollIntoView({ behavior: "instant" });
}

async function find(kind, id) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  say(`Looking up ${id} …`, "note");
  try {
    const answer = await ask(KINDS[kind].path + encodeURIComponent(id), { signal: mine.signal });
    if (!answer.ok) {
      say(await problemOf(answer));
      return;
    }
    result.replaceChildren(...KINDS[kind].show(await answer.json()));
  } catch (error) {
    if (error.name !== "AbortError") say("The server can't be reached. Please try again.");
  }
}

function say(sentence, className = "error") {
  result.replaceChildren(el("p", { class: className }, sentence));
}
