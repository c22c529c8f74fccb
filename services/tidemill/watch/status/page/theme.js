// Runs before the first paint, as a classic script: the page never flashes in the wrong colours.
// The root element always carries the colours in force, so that the style sheet and the charts need to ask one thing only.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    try {
      return localStorage.getItem("tidemill.theme");
    } catch {
      return null; // storage may be forbidden
    }
  };
  let chosen = read();

  function apply() {
    const theme = chosen === "light" || chosen === "dark" ? chosen : dark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new CustomEvent("theme", { detail: { theme, chosen: chosen ?? "system" } }));
  }

  document.addEventListener("theme-wanted", () => {
    const now = document.documentElement.dataset.theme;
    const other = now === "dark" ? "light" : "dark";
    // Choosing what the system has anyway means to follow the system again.
    chosen = other === (dark.matches ? "dark" : "light") ? null : other;
    try {
      if (chosen) localStorage.setItem("tidemill.theme", chosen);
      else localStorage.removeItem("tidemill.theme");
    } catch {
      // then it lasts as long as the page
    }
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
})();
