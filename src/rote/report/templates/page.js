/* The page's own script: theme, plots, selectors, copy. Knows nothing about what the numbers mean. */
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const store = {
    get: (key) => { try { return localStorage.getItem(key); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* private or sandboxed: forget */ } },
  };

  /* Theme: the system's, unless the reader chose one. */
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const themed = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${dark() ? "light" : "dark"} theme`);
    drawn.forEach(draw);
  };
  const drawn = new Set();
  const saved = store.get("rote-theme");
  if (saved === "light" || saved === "dark") root.dataset.theme = saved;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    store.set("rote-theme", root.dataset.theme);
    themed();
  });
  system.addEventListener("change", themed);

  /* Colours are names in the figures ("@p3", "@p3-band"); the stylesheet says what they are in this theme. */
  const probe = document.body.appendChild(document.createElement("i"));
  probe.hidden = true;
  const color = (name) => {
    const [, base, kind] = name.match(/^@([a-z0-9]+)(?:-(band|bar))?$/) || [];
    if (!base) return name;
    probe.style.color = `var(--${base})`;
    const value = getComputedStyle(probe).color;
    return kind ? value.replace("rgb(", "rgba(").replace(")", kind === "band" ? ", 0.14)" : ", 0.5)") : value;
  };
  const colored = (value, key) => {
    if (typeof value === "string") return key && key.toLowerCase().endsWith("color") ? color(value) : value;
    if (Array.isArray(value)) return value.map((item) => colored(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, colored(v, k)]));
    }
    return value;
  };

  /* Plots. */
  const source = document.getElementById("plots");
  const specs = source ? new Map(JSON.parse(source.textContent).map((spec) => [spec.id, spec])) : new Map();
  const canvas = (id) => document.querySelector(`#${id} .canvas`);
  const frame = (own, width) => {
    const narrow = width < 560;
    const axis = (given) => ({
      automargin: true, zeroline: false, color: "@muted", gridcolor: "@grid", linecolor: "@grid", zerolinecolor: "@grid",
      ...(narrow ? { nticks: 5 } : {}), ...given,
      title: { font: { size: narrow ? 12 : 13, color: "@muted" }, standoff: 10, ...given.title },
    });
    const body = getComputedStyle(document.body);
    return {
      ...own, xaxis: axis(own.xaxis), yaxis: axis(own.yaxis), autosize: true, showlegend: false, hovermode: "closest",
      margin: narrow ? { l: 8, r: 8, t: 8, b: 8 } : { l: 12, r: 16, t: 12, b: 12 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", bargap: 0.05,
      font: { family: body.fontFamily, size: narrow ? 11.5 : 12.5, color: "@muted" },
      hoverlabel: { bgcolor: "@card", bordercolor: "@line", font: { family: body.fontFamily, size: 13, color: "@ink" }, align: "left" },
    };
  };
  const draw = (id) => {
    const place = canvas(id), spec = specs.get(id);
    const pressed = new Map();
    all(`#${id} .key`).forEach((key) => key.dataset.traces.split(",").forEach((t) => pressed.set(+t, key.ariaPressed === "true")));
    const data = spec.data.map((trace, i) => ({ ...trace, visible: pressed.get(i) === false ? "legendonly" : true }));
    if (!drawn.has(id)) place.replaceChildren();
    drawn.add(id);
    return window.Plotly.react(place, colored(data), colored(frame(spec.layout, place.clientWidth)), {
      displayModeBar: false, responsive: true,
    });
  };
  const visible = () => [...specs.keys()].filter((id) => canvas(id).offsetParent !== null);
  const inflate = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    script.remove();
    if (!window.Plotly) throw new Error("Plotly did not start");
  };
  const twins = (open) => all("details.twin").forEach((twin) => { twin.open = open; });
  const start = async () => {
    root.dataset.plots = "waiting";
    twins(false);
    try {
      await inflate();
      for (const id of visible()) await draw(id);
      root.dataset.plots = "drawn";
    } catch (error) {
      root.dataset.plots = "failed";
      twins(true);
      all(".canvas .waiting").forEach((p) => { p.textContent = "The drawing did not start here; the table below has the same numbers."; });
      console.error(error);
    }
  };

  /* Selectors: one panel of a section at a time. */
  all("fieldset.switch").forEach((field) => {
    const panels = all(`[data-panel="${field.dataset.switch}"]`);
    const show = (chosen) => {
      panels.forEach((panel, i) => { panel.hidden = i !== chosen; });
      if (root.dataset.plots === "drawn") visible().filter((id) => !drawn.has(id)).forEach(draw);
    };
    field.addEventListener("change", (event) => show(+event.target.value));
    show(0);
  });

  /* Legends switch lines. */
  all(".key").forEach((key) => key.addEventListener("click", () => {
    const on = key.ariaPressed !== "true";
    key.ariaPressed = String(on);
    const id = key.closest("figure").id;
    if (drawn.has(id)) draw(id);
  }));

  /* Copy the command. */
  all(".copy").forEach((copy) => copy.addEventListener("click", async () => {
    const code = copy.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  }));

  /* Print in ink on paper. */
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; drawn.forEach(draw); });
  addEventListener("afterprint", () => {
    if (before) root.dataset.theme = before; else delete root.dataset.theme;
    drawn.forEach(draw);
  });

  themed();
  if (specs.size) start();
})();
