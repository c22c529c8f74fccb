// The dialogue in which somebody acknowledges an alert. The token lives in this module's memory, and nowhere else.

import { byId, text } from "./dom.js";

const dialog = byId("acknowledge");
const form = dialog.querySelector("form");
const fields = form.elements;
const problem = byId("acknowledge-error");
let known = { by: "", token: "" };
let alert = null;
let opener = null;

export function askFor(about, button) {
  alert = about;
  opener = button;
  text(byId("acknowledge-what"), about.message ?? about.id);
  fields.by.value = known.by;
  fields.token.value = known.token;
  fields.why.value = "";
  complain("");
  dialog.showModal();
  (known.by ? fields.why : fields.by).focus();
}

function complain(sentence) {
  text(problem, sentence);
  problem.hidden = !sentence;
}

async function send() {
  const [by, why, token] = [fields.by.value.trim(), fields.why.value.trim(), fields.token.value];
  const missing = [
    [by, "your name", fields.by],
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
    const answer = await fetch(`/api/alerts/${encodeURIComponent(alert.id)}/acknowledge`, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify({ by, why }),
    });
    if (answer.ok) {
      known = { by, token };
      dialog.close();
      return;
    }
    if (answer.status === 401) {
      known.token = "";
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
