// The live stream of snapshots. It connects again by itself, and says when what is shown has become old.
// It is read by `fetch`, because an EventSource can't send a token other than in the address.

import { ask, knownToken, problemOf } from "./token.js";

const QUIET_MS = 6000; // without a snapshot for this long the stream counts as lost, whatever the socket says
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 15000;

/**
 * Follow `url`: `onSnapshot(data)` for each snapshot, `onState(state)` when that changes.
 *
 * A state is { name: "connecting" | "live" | "lost" | "locked", since, next, problem }: `since` is when the last snapshot
 * came, or when the first try began; `next` when it is tried again; both in ms of this machine's clock; `problem` what was wrong
 * with the token, where one was given. Returns a function that tries again at once.
 */
export function follow(url, onSnapshot, onState) {
  let source = null;
  let wait = FIRST_WAIT_MS;
  let timer = 0;
  let last = Date.now();
  let seen = false;

  function say(name, next = null, problem = "") {
    onState({ name, since: last, next, seen, problem });
  }

  async function open() {
    close();
    const mine = new AbortController();
    source = mine;
    timer = setTimeout(lost, QUIET_MS);
    try {
      const answer = await ask(url, { signal: mine.signal });
      if (answer.status === 401 || answer.status === 429) {
        const problem = answer.status === 429 ? await problemOf(answer) : knownToken() ? "The token is wrong." : "";
        if (source === mine) locked(problem);
        return;
      }
      if (answer.ok) {
        for await (const data of snapshots(answer.body)) {
          if (source !== mine) return;
          last = Date.now();
          seen = true;
          wait = FIRST_WAIT_MS;
          clearTimeout(timer);
          timer = setTimeout(lost, QUIET_MS);
          say("live");
          onSnapshot(data);
        }
      }
    } catch (error) {
      // Cut off, by us or on the way: an AbortError or a TypeError.
      if (error.name !== "AbortError" && !(error instanceof TypeError)) console.error(error);
    }
    if (source === mine) lost();
  }

  function close() {
    source?.abort();
    source = null;
    clearTimeout(timer);
  }

  function locked(problem) {
    close();
    say("locked", null, problem);
  }

  function lost() {
    close();
    timer = setTimeout(open, wait);
    say("lost", Date.now() + wait);
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  }

  function now() {
    wait = FIRST_WAIT_MS;
    say(seen ? "lost" : "connecting");
    open();
  }

  addEventListener("online", () => source || now());
  document.addEventListener("visibilitychange", () => document.hidden || source || now());
  say("connecting");
  open();
  return now;
}

/** The data of each event in a stream of server-sent events. */
async function* snapshots(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      let data;
      try {
        data = JSON.parse(/^data: ([^\n]*)$/m.exec(event)?.[1]);
      } catch {
        continue; // a torn message, or one without data: the next one comes in a second
      }
      yield data;
    }
  }
}
