// The dialogue in which somebody acknowledges an alert. Who it is, the service knows by the token.

import { byId, text } from "./dom.js";
import { ask, knownToken, problemOf, rememberToken } from "./token.js";

const dialog = byId("acknowledge");
const form = dialog.querySelector("form");
const fields = form.elements;
const problem = byId("acknowledge-error");
let alert = null;
let opener = null;

export function askFor(about, button) {
  alert = about;
  opener = button;
  text(byId("acknowledge-what"), about.message ?? about.id);
  fields.token.value = knownToken();
  fields.why.value = "";
  complain("");
  dialog.showModal();
  fields.why.focus();
}

function complain(sentence) {
  text(problem, sentence);
  problem.hidden = !sentence;
}

async function send() {
  const [why, token] = [fields.why.value.trim(), fields.token.value.trim()];
  const missing = [
    [why, "a reason", fields.why],
    [token, "the token", fields.token],
  ].find(([value]) => !value);
  if (missing) {
    complain(`Enter ${missing[1]}.`);
    missing[2].focus();
    return;
  }
  const submit = form.querySelector("[type=submit]");
  submit.disabled = true;
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ why }) };
    const answer = await ask(`/api/alerts/${encodeURIComponent(alert.id)}/acknowledge`, options, token);
    if (answer.ok) {
      rememberToken(token);
      dialog.close();
      return;
    }
    if (answer.status === 401) {
      rememberToken("");
      complain("The token is wrong.");
      fields.token.focus();
    } else {
      complain(await problemOf(answer));
    }
  } catch {
    complain("The server can't be reached. Nothing was acknowledged.");
  } finally {
    submit.disabled = false;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
form.querySelector(".cancel").addEventListener("click", () => dialog.close());
dialog.addEventListener("close", () => {
  fields.token.value = ""; // not left in the page
  if (opener?.isConnected && !opener.hidden) opener.focus();
  else byId("alerts").querySelector(".alerts-scroll").focus({ preventScroll: true });
});
