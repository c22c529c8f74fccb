// The live stream of snapshots. It connects again by itself, and says when what is shown has become old.

const QUIET_MS = 6000; // without a snapshot for this long the stream counts as lost, whatever the socket says
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 15000;

/**
 * Follow `url`: `onSnapshot(data)` for each snapshot, `onState(state)` when that changes.
 *
 * A state is { name: "connecting" | "live" | "lost", since, next }: `since` is when the last snapshot came, or when the first try
 * began; `next` when it is tried again; both in ms of this machine's clock. Returns a function that tries again at once.
 */
export function follow(url, onSnapshot, onState) {
  let source = null;
  let wait = FIRST_WAIT_MS;
  let timer = 0;
  let last = Date.now();
  let seen = false;

  function say(name, next = null) {
    onState({ name, since: last, next, seen });
  }

  function open() {
    clearTimeout(timer);
    source?.close();
    source = new EventSource(url);
    timer = setTimeout(lost, QUIET_MS);
    source.addEventListener("snapshot", (event) => {
      let data;
      try {
        data = JSON.parse(event.data);
      } catch {
        return; // a torn message: the next one comes in a second
      }
      last = Date.now();
      seen = true;
      wait = FIRST_WAIT_MS;
      clearTimeout(timer);
      timer = setTimeout(lost, QUIET_MS);
      say("live");
      onSnapshot(data);
    });
    // The browser's own retry gives up on an HTTP error: so every retry is ours.
    source.addEventListener("error", lost);
  }

  function lost() {
    source?.close();
    source = null;
    clearTimeout(timer);
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
