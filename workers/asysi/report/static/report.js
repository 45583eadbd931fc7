"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
  const NONE = 0xffffffff;

  /* Small tools: text only ever enters the page as text. */
  const unpack = ({ t, b }) => new TYPES[t](Uint8Array.from(atob(b), (c) => c.charCodeAt(0)).buffer);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name.startsWith("--")) node.style.setProperty(name, value);
      else if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const draw = (tag, attributes = {}, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "stroke" || name === "fill") node.style[name] = value;
      else node.setAttribute(name, value);
    }
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const percent = (share, digits = 3) => {
    const value = 100 * share;
    if (!value) return "0%";
    return (Math.abs(value) >= 99.95 ? value.toFixed(0) : value.toPrecision(Math.min(digits, value >= 0.001 ? 3 : 1)).replace(/e.*/, "")) + "%";
  };
  const small = (value) => (value ? Number(value.toPrecision(3)).toString() : "0");
  const count = (value) => Math.round(value).toLocaleString("en").replace(/,/g, "\u202f");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /* Theme: the system's, until the reader says otherwise. */
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  const repaint = [];
  const retheme = () => {
    $("theme").textContent = theme() === "dark" ? "Light" : "Dark";
    repaint.forEach((paint) => paint());
  };
  $("theme").hidden = false;
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
    retheme();
  });
  dark.addEventListener("change", retheme);

  /* Charts are drawn to the width they get. */
  const onWidth = (node, paint) => {
    let width = 0;
    const again = () => {
      if (node.clientWidth && node.clientWidth !== width) paint((width = node.clientWidth));
    };
    new ResizeObserver(again).observe(node);
    again();
  };
  const COLOURS = ["var(--accent)", "rgb(var(--heat))", "var(--good)", "var(--bad)"];

  const timeline = (run) => {
    const box = $("timeline");
    const end = run.at[run.at.length - 1] || 1;
    const LEFT = 46, RIGHT = 8;
    const panels = [
      { title: "Sampling rate", top: 1, form: (v) => percent(v), lines: [["rate", run.rate]] },
      { title: "Lag", top: Math.min(1, roundUp(Math.max(0.1, ...Object.values(run.lag).flat()))), form: (v) => percent(v, 2), lines: Object.entries(run.lag) },
      { title: "Rows a second", top: roundUp(Math.max(1, ...run.offered)), form: (v) => count(v), lines: [["offered", run.offered]], bars: run.dropped },
    ];
    const readout = make("p", { class: "readout", role: "status" });
    const crosses = [];
    for (const panel of panels) {
      const keys = panel.lines.length > 1 || panel.bars
        ? panel.lines.map(([name], i) => make("span", { class: "key", "--key": COLOURS[i % 4] }, name)) : [];
      if (panel.bars) keys.push(make("span", { class: "key fill", "--key": "var(--bad)" }, "dropped"));
      const chart = make("div", { class: "chart" }, make("div", { class: "title" }, make("b", {}, panel.title), ...keys));
      box.append(chart);
      onWidth(chart, (width) => {
        chart.querySelector("svg")?.remove();
        const height = 84, base = 66, top = 8;
        const x = (t) => LEFT + (t / end) * (width - LEFT - RIGHT);
        const y = (v) => base - (Math.min(v, panel.top) / panel.top) * (base - top);
        const svg = draw("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${panel.title} over ${Math.round(end)} seconds` });
        for (const v of [0, panel.top]) {
          svg.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }));
          svg.append(draw("text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" }, panel.form(v)));
        }
        const step = niceStep(end, width / 90);
        for (let t = 0; t <= end; t += step) svg.append(draw("text", { x: x(t), y: height - 3, "text-anchor": "middle" }, `${t} s`));
        if (panel.bars) {
          const wide = Math.max(1, (x(end) - LEFT) / run.at.length);
          panel.bars.forEach((v, i) => v > 0 && svg.append(draw("rect", { x: x(run.at[i]) - wide / 2, width: wide, y: Math.min(y(v), base - 3), height: Math.max(3, base - y(v)), fill: "var(--bad)", "fill-opacity": 0.35 })));
        }
        for (const event of run.events) {
          if (event.kind === "restart") svg.append(draw("line", { class: "mark", x1: x(event.at), x2: x(event.at), y1: top - 4, y2: base }));
        }
        panel.lines.forEach(([, values], i) => {
          const points = values.map((v, j) => `${x(run.at[j]).toFixed(1)},${y(v).toFixed(1)}`).join(" ");
          svg.append(draw("polyline", { class: "line", points, stroke: COLOURS[i % 4] }));
        });
        const cross = draw("line", { class: "cross", x1: 0, x2: 0, y1: top, y2: base, visibility: "hidden" });
        svg.append(cross);
        panel.cross = { cross, x };
        svg.addEventListener("pointermove", (event) => {
          const share = (event.clientX - svg.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT);
          show(nearest(run.at, share * end));
        });
        svg.addEventListener("pointerleave", () => show(null));
        chart.append(svg);
      });
    }
    const show = (i) => {
      for (const { cross: it } of panels) {
        it.cross.setAttribute("visibility", i === null ? "hidden" : "visible");
        if (i !== null) for (const side of ["x1", "x2"]) it.cross.setAttribute(side, it.x(run.at[i]));
      }
      readout.textContent = i === null ? "" :
        `${run.at[i].toFixed(0)} s · rate ${percent(run.rate[i])} · ${Object.entries(run.lag).map(([name, v]) => `${name} lag ${percent(v[i], 2)}`).join(" · ")} · ${count(run.offered[i])} rows/s offered · ${count(run.dropped[i])} dropped`;
    };
    box.append(readout);
    if (run.events.length) {
      box.append(make("ul", { class: "events" }, ...run.events.map((event) => make("li", {}, make("b", {}, `${event.at.toFixed(1)} s`), event.text))));
    }
  };
  const roundUp = (v) => { const unit = 10 ** Math.floor(Math.log10(v)); return [1, 2, 3, 4, 5, 6, 8, 10].find((m) => m * unit >= v * 0.999) * unit; };
  const niceStep = (end, ticks) => [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400].find((s) => end / s <= ticks) || end;
  const nearest = (sorted, value) => {
    let best = 0;
    sorted.forEach((v, i) => { if (Math.abs(v - value) < Math.abs(sorted[best] - value)) best = i; });
    return best;
  };

  /* Training curves: a line an autoencoder, the chosen one in front. */
  const curves = (all) => {
    const box = $("curves");
    let chosen = 0;
    const paints = [];
    const choice = all.length > 1 ? make("select", { "aria-label": "Autoencoder", onchange: (e) => { chosen = e.target.selectedIndex; paints.forEach((paint) => paint()); } },
      ...all.map((one) => make("option", {}, data.short[one.name] || one.name))) : null;
    if (choice) box.before(make("p", { class: "pick" }, "In front: ", choice));
    for (const [title, key, form] of [["FVU, held out", "fvu", (v) => percent(v)], ["Loss", "loss", small], ["L0", "l0", small], ["Dead", "dead", (v) => percent(v, 2)]]) {
      const values = all.flatMap((one) => one[key].filter((v) => v !== null));
      const last = make("span", {});
      const chart = make("div", { class: "chart" }, make("div", { class: "title" }, make("b", {}, title), last));
      box.append(chart);
      if (!values.length) { last.textContent = "not known"; continue; }
      const end = Math.max(...all.map((one) => one.trained[one.trained.length - 1])) || 1;
      const sorted = [...values].sort((a, b) => a - b), most = sorted[Math.floor((sorted.length - 1) * 0.98)];
      const top = roundUp(Math.max(most, key === "dead" ? 0.01 : 1e-6));
      let width = 0;
      const paint = () => {
        const known = all[chosen][key].filter((v) => v !== null);
        last.textContent = known.length ? `${form(known[known.length - 1])} at the end` : "not known";
        chart.querySelector("svg")?.remove();
        const height = 124, base = 104, LEFT = 50, RIGHT = 8;
        const x = (t) => LEFT + (t / end) * (width - LEFT - RIGHT), y = (v) => base - (Math.min(v, top) / top) * (base - 8);
        const svg = draw("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} over rows trained on` });
        for (const v of [0, top / 2, top]) {
          svg.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }));
          svg.append(draw("text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" }, form(v)));
        }
        for (const share of [0, 0.5, 1]) svg.append(draw("text", { x: x(end * share), y: height - 3, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, share ? count(end * share) : "0 rows"));
        [...all.keys()].sort((a, b) => (a === chosen) - (b === chosen)).forEach((i) => {
          const points = all[i].trained.map((t, j) => (all[i][key][j] === null ? null : `${x(t).toFixed(1)},${y(all[i][key][j]).toFixed(1)}`)).filter(Boolean).join(" ");
          const line = draw("polyline", { class: i === chosen ? "line" : "line behind", points, stroke: i === chosen ? "var(--accent)" : "var(--faint)" });
          line.append(draw("title", {}, all[i].name));
          svg.append(line);
        });
        chart.append(svg);
      };
      paints.push(() => width && paint());
      onWidth(chart, (w) => { width = w; paint(); });
    }
  };

  const comparisons = (all) => {
    const grid = make("div", { class: "hists" });
    $("comparisons").append(grid);
    for (const one of all) {
      let shown = one.histograms[0];
      const choice = one.histograms.length > 1
        ? make("select", { "aria-label": "Layer", onchange: (e) => { shown = one.histograms[e.target.selectedIndex]; paint(); } },
            ...one.histograms.map((h) => make("option", {}, data.short[h.name] || h.name || "all"))) : null;
      const distance = make("span", {});
      const chart = make("div", { class: "chart" });
      grid.append(make("div", { class: "hist" },
        make("div", { class: "title" }, make("b", {}, `By ${one.by}`), choice, distance), chart,
        make("div", { class: "title" }, make("span", { class: "key fill", "--key": "var(--faint)" }, "seen"), make("span", { class: "key", "--key": "var(--accent)" }, "kept")),
        make("p", { class: "note" }, one.note)));
      let width = 0;
      const paint = () => {
        distance.textContent = `distance ${percent(shown.distance, 2)}` + (shown.chance === null ? "" : `, by chance alone ${percent(shown.chance, 2)}`);
        chart.replaceChildren(histogram(shown, width, one.by));
      };
      onWidth(chart, (w) => { width = w; paint(); });
    }
  };
  const histogram = ({ edges, seen, kept }, width, by) => {
    const height = 132, base = 112;
    const share = (counts) => { const sum = counts.reduce((a, b) => a + b, 0) || 1; return counts.map((c) => c / sum); };
    const [a, b] = [share(seen), share(kept)];
    const top = Math.max(...a, ...b, 1e-9);
    const low = edges[0], span = edges[edges.length - 1] - low || 1;
    const x = (v) => ((v - low) / span) * width;
    const y = (v) => base - (v / top) * (base - 8);
    const outline = (values) => values.map((v, i) => `L${x(edges[i]).toFixed(1)} ${y(v).toFixed(1)}L${x(edges[i + 1]).toFixed(1)} ${y(v).toFixed(1)}`).join("");
    const svg = draw("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Seen and kept by ${by}` });
    svg.append(draw("path", { d: `M0 ${base}${outline(a)}L${width} ${base}Z`, fill: "var(--faint)", "fill-opacity": 0.28 }));
    svg.append(draw("path", { class: "line", d: `M0 ${base}${outline(b)}L${width} ${base}`, stroke: "var(--accent)" }));
    svg.append(draw("line", { class: "grid", x1: 0, x2: width, y1: base, y2: base }));
    const step = roundUp(span / 5);
    for (let v = Math.ceil(low / step) * step; v <= low + span; v += step) {
      const at = x(v);
      svg.append(draw("text", { x: at, y: height - 3, "text-anchor": at < 12 ? "start" : at > width - 12 ? "end" : "middle" }, Number(v.toPrecision(6)).toString()));
    }
    return svg;
  };

  if (data.timeline && data.timeline.at.length) timeline(data.timeline);
  if (data.curves.length) curves(data.curves);
  if (data.comparisons.length) comparisons(data.comparisons);
  if (data.browser) browse(data.browser);
  retheme();
  document.querySelectorAll('a[href="#ledger"]').forEach((link) => link.addEventListener("click", () => { $("ledger").open = true; }));

  /* The feature browser. */
  function browse(raw) {
    const words = raw.vocabulary;
    const tokens = unpack(raw.tokens), starts = unpack(raw.starts), rows = raw.rows, heldOut = unpack(raw.heldOut);
    const PER = raw.groups.reduce((a, b) => a + b, 0), WINDOW = raw.before + 1 + raw.after;
    const layers = new Map();
    raw.features.forEach((packed) => layers.set(packed.layer, { packed }));
    const names = [...layers.keys()];
    const state = { layer: names[0], latent: null, order: [], hits: null, query: "", shown: 80 };

    const open = (name) => {
      const layer = layers.get(name);
      if (!layer.latents) {
        const p = layer.packed;
        for (const key of ["latents", "density", "maximum", "explained", "contexts", "shades", "neighbours", "cosines", "firings"]) layer[key] = unpack(p[key]);
        layer.logits = p.logits && unpack(p.logits);
        layer.logitValues = p.logitValues && unpack(p.logitValues);
        Object.assign(layer, { name, random: p.random, best: p.best, index: new Map([...layer.latents].map((n, i) => [n, i])), tags: [] });
        layer.bins = layer.latents.length ? layer.firings.length / layer.latents.length : 0;
        layer.ends = layer.logits && layer.latents.length ? layer.logits.length / layer.latents.length / 2 : 0;
        layer.near = layer.latents.length ? layer.neighbours.length / layer.latents.length : 0;
      }
      return layer;
    };
    const documentOf = (token) => {
      let low = 0, high = starts.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (starts[middle] <= token) low = middle; else high = middle;
      }
      return low;
    };
    /* A latent's name: the tokens its strongest contexts peak on. */
    const tag = (layer, i) => {
      if (layer.tags[i] === undefined) {
        const tally = new Map();
        for (let c = 0; c < raw.groups[0]; c++) {
          const peak = layer.contexts[i * PER + c];
          if (peak !== NONE) { const word = words[tokens[peak]].trim().toLowerCase(); tally.set(word, (tally.get(word) || 0) + 1); }
        }
        layer.tags[i] = [...tally].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([word]) => word).join(" · ");
      }
      return layer.tags[i];
    };

    /* Search: which tokens of the corpus belong to the text, then which latents fire on them. */
    let text = null;
    const spell = () => {
      if (text) return text;
      const parts = [], at = [];
      let length = 0;
      for (let d = 0; d + 1 < starts.length; d++) {
        for (let t = starts[d]; t < starts[d + 1]; t++) { at.push(length); parts.push(words[tokens[t]]); length += words[tokens[t]].length; }
        parts.push("\n"); length += 1;
      }
      const joined = parts.join("");
      const lower = joined.toLowerCase();
      return (text = { lower: lower.length === joined.length ? lower : joined, at });
    };
    const find = (query) => {
      const { lower, at } = spell(), marked = new Uint8Array(tokens.length);
      let t = 0, any = false;
      for (let from = lower.indexOf(query); from >= 0; from = lower.indexOf(query, from + query.length)) {
        while (t + 1 < at.length && at[t + 1] <= from) t++;
        for (let u = t; u < at.length && at[u] < from + query.length; u++) marked[u] = 1;
        any = true;
      }
      return any ? marked : null;
    };
    const score = (layer, marked) => {
      const scores = new Map();
      for (let i = 0; i < layer.latents.length; i++) {
        let sum = 0;
        for (let c = 0; c < PER; c++) {
          const peak = layer.contexts[i * PER + c];
          if (peak === NONE) continue;
          for (let w = 0; w < WINDOW; w++) {
            const shade = layer.shades[(i * PER + c) * WINDOW + w];
            if (shade && marked[peak - raw.before + w]) sum += shade;
          }
        }
        if (sum) scores.set(i, sum);
      }
      return scores;
    };

    /* Text with its activations. */
    const passage = (layer, i, c, before, after) => {
      const peak = layer.contexts[i * PER + c], d = documentOf(peak);
      const first = Math.max(starts[d], peak - before), last = Math.min(starts[d + 1] - 1, peak + after);
      const line = make("span", { class: "text" });
      if (first > starts[d]) line.append(make("span", { class: "cut" }, "… "));
      for (let t = first; t <= last; t++) {
        const shade = layer.shades[(i * PER + c) * WINDOW + (t - peak + raw.before)] / 255;
        const word = t === first ? words[tokens[t]].trimStart() : words[tokens[t]];
        if (word.startsWith(" ") && word.length > 1) line.append(" ");
        const classes = ["t", t === peak && "peak", state.hits && state.hits[t] && "hit"].filter(Boolean).join(" ");
        if (!shade && classes === "t") line.append(word.trimStart());
        else line.append(make("span", { class: classes, "--a": (shade * 0.85).toFixed(2), title: `activation ${small(shade * layer.maximum[i])}` }, word.trimStart() || word));
      }
      if (last < starts[d + 1] - 1) line.append(make("span", { class: "cut" }, " …"));
      return line;
    };
    const source = (token) => {
      const d = documentOf(token), held = heldOut[d];
      return make("span", { class: "source", title: held ? "held out: never trained on" : "trained on" }, make("i", {}, held ? "◆" : "◇"), ` row ${rows[d]}`);
    };

    /* Parts of the page. */
    const tabs = names.map((name, i) => make("button", {
      type: "button", role: "tab", title: name, onclick: () => go(name, null),
      onkeydown: (event) => {
        const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (move) { const next = tabs[(i + move + names.length) % names.length]; next.focus(); next.click(); event.preventDefault(); event.stopPropagation(); }
      },
    }, data.short[name] || name));
    $("tabs").append(...tabs);

    const SORTS = {
      explained: { by: (l, i) => -l.explained[i], say: (l, i) => percent(l.explained[i], 2) },
      maximum: { by: (l, i) => -l.maximum[i], say: (l, i) => small(l.maximum[i]) },
      common: { by: (l, i) => -l.density[i], say: (l, i) => percent(l.density[i], 2) },
      rare: { by: (l, i) => l.density[i] || 9, say: (l, i) => percent(l.density[i], 2) },
      number: { by: (l, i) => l.latents[i], say: (l, i) => percent(l.explained[i], 2) },
    };
    const arrange = () => {
      const layer = open(state.layer), sort = SORTS[$("sort").value];
      const scores = state.hits ? score(layer, state.hits) : null;
      const all = scores ? [...scores.keys()] : [...layer.latents.keys()];
      const by = scores ? (i) => -scores.get(i) : (i) => sort.by(layer, i);
      state.order = all.sort((a, b) => by(a) - by(b) || a - b);
      state.shown = 80;
      $("sort").disabled = Boolean(scores);
      tell(layer, scores);
    };
    const tell = (layer, scores) => {
      tabs.forEach((tab, i) => {
        tab.querySelector("small")?.remove();
        if (state.hits) tab.append(make("small", {}, String(score(open(names[i]), state.hits).size)));
      });
      $("found").textContent = !state.query ? "" : !scores ? `“${state.query}” is not in the text read for this page.`
        : scores.size ? `${count(scores.size)} latents of ${data.short[layer.name]} fire on “${state.query}” in their contexts, those that fire most first.`
        : `“${state.query}” is in the text, but in no latent's contexts of ${data.short[layer.name]}.`;
    };
    const list = () => {
      const layer = open(state.layer), sort = SORTS[$("sort").value];
      const entries = state.order.slice(0, state.shown).map((i) => make("li", {}, make("button", {
        type: "button", "data-latent": layer.latents[i], "aria-current": layer.latents[i] === state.latent ? "true" : false,
        onclick: () => go(state.layer, layer.latents[i]),
      }, make("span", { class: "num" }, String(layer.latents[i])), make("span", { class: "tag" }, tag(layer, i)), make("span", { class: "amount" }, sort.say(layer, i)))));
      if (state.order.length > state.shown) {
        entries.push(make("li", {}, make("button", { type: "button", class: "more", onclick: () => { state.shown += 200; list(); } }, `${count(state.order.length - state.shown)} more`)));
      }
      $("list").replaceChildren(...entries);
    };
    $("list").addEventListener("keydown", (event) => {
      const move = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      const next = move && document.activeElement.closest("li")?.[move]?.firstElementChild;
      if (next) { next.focus(); event.preventDefault(); }
    });

    const card = () => {
      const layer = open(state.layer), i = layer.index.get(state.latent);
      if (i === undefined) { $("card").replaceChildren(make("p", { class: "lead" }, state.latent === null ? "No latent of this layer fires on the text." : `Latent ${state.latent} does not fire on the text read for this page.`)); return; }
      const fact = (key, name, value) => make("div", {}, make("dt", {}, make("a", { class: "metric", href: `#def-${key}` }, name)), make("dd", {}, value));
      const parts = [
        make("header", { class: "cardhead" },
          make("h3", {}, `Latent ${state.latent}`), make("span", { class: "of" }, layer.name),
          make("span", { class: "turn" },
            make("button", { type: "button", class: "quiet", "aria-label": "Previous latent of the list", title: "Previous (←)", onclick: () => turn(-1) }, "←"),
            make("button", { type: "button", class: "quiet", "aria-label": "Next latent of the list", title: "Next (→)", onclick: () => turn(1) }, "→"))),
        make("dl", { class: "facts" }, fact("density", "fires on", `${percent(layer.density[i])} of tokens`), fact("maximum", "maximum", small(layer.maximum[i])), fact("explained", "explains", percent(layer.explained[i]))),
      ];
      parts.push(make("div", { class: "twin" }, strengths(layer, i), ...speaks(layer, i)));
      const groups = [["Strongest", ""], ["Middle", "around the median firing"], ["Weak", "around the weakest tenth"]];
      let c = 0;
      groups.forEach(([title, note], g) => {
        const lines = [];
        for (let n = 0; n < raw.groups[g]; n++, c++) {
          const peak = layer.contexts[i * PER + c];
          if (peak !== NONE) lines.push(make("li", {}, passage(layer, i, c, raw.before, raw.after), source(peak)));
        }
        if (lines.length) parts.push(make("h4", { class: "group" }, title, make("span", {}, note)), make("ul", { class: "contexts" }, ...lines));
      });
      const near = [];
      for (let n = 0; n < layer.near; n++) {
        const number = layer.neighbours[i * layer.near + n], j = layer.index.get(number);
        near.push(make("button", { type: "button", disabled: j === undefined, title: j === undefined ? "does not fire on the text" : false, onclick: () => go(state.layer, number, true) },
          make("span", { class: "num" }, String(number)), j === undefined ? null : make("span", { class: "tag" }, tag(layer, j)), make("span", { class: "amount" }, layer.cosines[i * layer.near + n].toFixed(2))));
      }
      if (near.length) parts.push(make("h4", { class: "group" }, make("a", { class: "metric", href: "#def-neighbours" }, "Nearest decoder directions")), make("div", { class: "near" }, ...near));
      $("card").replaceChildren(...parts);
    };
    /* How often it fires how strongly; and the tokens whose logits it moves. */
    const strengths = (layer, i) => {
      const width = 240, height = 74, base = 56, step = width / layer.bins;
      const svg = draw("svg", { height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "How often the latent fires how strongly" });
      for (let b = 0; b < layer.bins; b++) {
        const tall = (layer.firings[i * layer.bins + b] / 255) * (base - 4);
        if (tall) svg.append(draw("rect", { x: b * step + 1, width: step - 2, y: base - tall, height: tall, fill: "rgb(var(--accent-rgb) / 0.55)" }));
      }
      svg.append(draw("line", { class: "grid", x1: 0, x2: width, y1: base, y2: base }));
      svg.append(draw("text", { x: 0, y: height - 3 }, "0"), draw("text", { x: width, y: height - 3, "text-anchor": "end" }, small(layer.maximum[i])));
      return make("figure", { class: "strengths" }, svg, make("figcaption", {}, make("a", { class: "metric", href: "#def-strengths" }, "firings by activation")));
    };
    const speaks = (layer, i) => {
      const from = i * layer.ends * 2;
      if (!layer.ends || layer.logits[from] === NONE) return [];
      const side = (title, first) => make("div", { class: "logits" }, make("h4", { class: "group" }, make("a", { class: "metric", href: "#def-logits" }, title)),
        make("ul", {}, ...Array.from({ length: layer.ends }, (_, n) => make("li", {},
          make("span", { class: "t" }, raw.logitTokens[layer.logits[from + first + n]].replace(/\n/g, "⏎").replace(/^ /, "␣") || "␣"), make("span", { class: "amount" }, layer.logitValues[from + first + n].toFixed(2))))));
      return [side("Raises", 0), side("Lowers", layer.ends)];
    };
    const turn = (by) => {
      const layer = open(state.layer), at = state.order.findIndex((i) => layer.latents[i] === state.latent);
      const next = state.order[Math.min(state.order.length - 1, Math.max(0, at + by))];
      if (next !== undefined) go(state.layer, layer.latents[next], true);
    };
    const minis = (id, numbers) => {
      const layer = open(state.layer);
      $(id).replaceChildren(...numbers.filter((number) => layer.index.has(number)).map((number) => {
        const i = layer.index.get(number);
        return make("li", {}, make("button", { type: "button", class: "mini", onclick: () => { go(state.layer, number, true); reveal(); } },
          make("span", { class: "num" }, String(number)), layer.contexts[i * PER] === NONE ? make("span", {}) : passage(layer, i, 0, 5, 6)));
      }));
    };
    const reveal = () => { if ($("card").getBoundingClientRect().top < 0 || $("card").getBoundingClientRect().top > innerHeight * 0.6) $("browser").scrollIntoView(); };

    /* The scatter: density across, maximum up, both by decade. */
    const canvas = $("scatter"), tip = $("tip");
    let spots = [];
    const scatter = () => {
      const layer = open(state.layer), width = canvas.clientWidth, height = canvas.clientHeight, scale = devicePixelRatio || 1;
      if (!width) return;
      canvas.width = width * scale; canvas.height = height * scale;
      const pen = canvas.getContext("2d");
      pen.scale(scale, scale); pen.clearRect(0, 0, width, height);
      const M = { left: 34, right: 10, top: 8, bottom: 24 };
      const floor = 0.5 / Math.max(1, raw.heldOutTokens);
      const log = Math.log10, positive = [...layer.maximum].filter((m) => m > 0);
      const x0 = log(floor), x1 = 0, y0 = log(Math.min(...positive, 1) * 0.8), y1 = log(Math.max(...positive, 1) * 1.25);
      const X = (v) => M.left + ((log(Math.max(v, floor)) - x0) / (x1 - x0)) * (width - M.left - M.right);
      const Y = (v) => height - M.bottom - ((log(v) - y0) / (y1 - y0)) * (height - M.top - M.bottom);
      pen.font = `11px ${css("--sans")}`; pen.fillStyle = css("--faint"); pen.strokeStyle = css("--line"); pen.lineWidth = 1;
      pen.textAlign = "center";
      for (let e = Math.ceil(x0); e <= 0; e++) {
        const x = X(10 ** e);
        pen.beginPath(); pen.moveTo(x, M.top); pen.lineTo(x, height - M.bottom); pen.stroke();
        pen.fillText(`${Number((100 * 10 ** e).toPrecision(1))}%`, Math.min(x, width - 18), height - 8);
      }
      pen.textAlign = "right";
      const marks = [];
      for (let e = Math.floor(y0); e <= Math.ceil(y1); e++) for (const m of y1 - y0 > 2 ? [1] : [1, 2, 5]) marks.push(m * 10 ** e);
      for (const v of marks.filter((m) => log(m) >= y0 && log(m) <= y1)) {
        pen.beginPath(); pen.moveTo(M.left, Y(v)); pen.lineTo(width - M.right, Y(v)); pen.stroke();
        pen.fillText(String(Number(v.toPrecision(1))), M.left - 6, Y(v) + 4);
      }
      const listed = state.hits ? new Set(state.order) : null;
      const accent = css("--accent-rgb"), heat = css("--heat");
      spots = [...layer.latents.keys()].map((i) => ({ i, x: X(layer.density[i]), y: Y(layer.maximum[i] || 1e-9), on: !listed || listed.has(i) }));
      for (const on of [false, true]) {
        for (const spot of spots) {
          if (spot.on !== on) continue;
          pen.fillStyle = listed && on ? `rgb(${heat} / 0.9)` : `rgb(${accent} / ${on ? 0.42 : 0.12})`;
          pen.beginPath(); pen.arc(spot.x, spot.y, listed && on ? 3.2 : 2.3, 0, 7); pen.fill();
        }
      }
      const chosen = spots.find((spot) => layer.latents[spot.i] === state.latent);
      if (chosen) {
        pen.beginPath(); pen.arc(chosen.x, chosen.y, 6.5, 0, 7); pen.strokeStyle = css("--ink"); pen.lineWidth = 1.75; pen.stroke();
      }
    };
    const under = (event) => {
      const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      let best = null, far = event.pointerType === "touch" ? 900 : 200;
      for (const spot of spots) {
        const away = (spot.x - x) ** 2 + (spot.y - y) ** 2;
        if (away < far) { far = away; best = spot; }
      }
      return best;
    };
    canvas.addEventListener("pointermove", (event) => {
      const spot = under(event), layer = open(state.layer);
      tip.hidden = !spot;
      if (!spot) return;
      tip.textContent = `${layer.latents[spot.i]} · ${tag(layer, spot.i)}`;
      tip.style.left = `${Math.min(spot.x + 10, Math.max(0, canvas.clientWidth - tip.offsetWidth - 4))}px`;
      tip.style.top = `${Math.max(0, spot.y - 34)}px`;
    });
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    canvas.addEventListener("click", (event) => {
      const spot = under(event);
      if (spot) go(state.layer, open(state.layer).latents[spot.i], true);
    });
    new ResizeObserver(scatter).observe(canvas);
    repaint.push(scatter);

    /* Where the reader is stands in the address. */
    const show = (layerName, latent) => {
      const changed = layerName !== state.layer || !state.order.length;
      state.layer = layerName;
      const layer = open(layerName);
      tabs.forEach((tab, i) => { const on = names[i] === layerName; tab.setAttribute("aria-selected", String(on)); tab.tabIndex = on ? 0 : -1; });
      if (changed) { arrange(); minis("best", layer.best); minis("random", layer.random); }
      const first = (state.hits ? layer.latents[state.order[0]] : layer.best[0]) ?? layer.latents[0] ?? null;
      state.latent = latent ?? first;
      card(); list(); scatter();
    };
    const go = (layerName, latent, keep = false) => {
      show(layerName, latent);
      history.replaceState(null, "", `#${encodeURIComponent(state.layer)}/${state.latent ?? ""}`);
      if (keep) $("list").querySelector('[aria-current="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
    };
    const arrive = () => {
      const whole = decodeURIComponent(location.hash.slice(1));
      const [name, latent] = layers.has(whole) ? [whole] : whole.split(/\/(?=\d*$)/);
      if (!layers.has(name)) return false;
      show(name, latent ? Number(latent) : null);
      $("browser").scrollIntoView();
      return true;
    };
    addEventListener("hashchange", arrive);
    $("sort").addEventListener("change", () => { arrange(); list(); });
    let pending = 0;
    $("search").addEventListener("input", () => {
      clearTimeout(pending);
      pending = setTimeout(() => {
        state.query = $("search").value.trim();
        state.hits = state.query ? find(state.query.toLowerCase()) || new Uint8Array(0) : null;
        if (state.hits && !state.hits.length) state.hits = null;
        arrange();
        if (state.query && !state.hits) state.order = [];
        const layer = open(state.layer);
        if (state.hits && state.order.length) state.latent = layer.latents[state.order[0]];
        card(); list(); scatter();
      }, 90);
    });
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (event.key === "/" && !typing) { $("search").focus(); event.preventDefault(); }
      else if (event.key === "Escape" && event.target === $("search")) { $("search").value = ""; $("search").dispatchEvent(new Event("input")); }
      else if (!typing && $("card").getBoundingClientRect().top < innerHeight && $("card").getBoundingClientRect().bottom > 0) {
        if (event.key === "ArrowRight") turn(1);
        if (event.key === "ArrowLeft") turn(-1);
      }
    });

    if (raw.sentence) follow(raw.sentence);
    if (!arrive()) show(names[0], null);

    /* The prepared sentence: a row a token, a column a layer. */
    function follow(sentence) {
      const table = $("follow"), start = starts[sentence.document], end = starts[sentence.document + 1];
      const steps = sentence.steps.map((step) => ({ name: step.layer, each: step.each, latents: unpack(step.latents), values: unpack(step.values) }));
      table.style.setProperty("--layers", steps.length);
      table.append(make("thead", {}, make("tr", {}, make("th", { scope: "col" }, source(start)), ...steps.map((step) => make("th", { scope: "col", title: step.name }, data.short[step.name] || step.name)))));
      const body = make("tbody");
      for (let t = start; t < end; t++) {
        const word = words[tokens[t]];
        const line = make("tr", {}, make("th", { scope: "row", class: t === start || word.startsWith(" ") ? "" : "glued" }, word.trim() || "␣"));
        for (const step of steps) {
          const cell = make("td"), layer = open(step.name);
          for (let n = 0; n < Math.min(2, step.each); n++) {
            const latent = step.latents[(t - start) * step.each + n], value = step.values[(t - start) * step.each + n], i = layer.index.get(latent);
            if (!value) continue;
            const shade = i === undefined ? 0.3 : Math.min(1, value / layer.maximum[i]);
            cell.append(make("button", { type: "button", "--a": (0.06 + 0.6 * shade ** 1.5).toFixed(2), "data-same": `${step.name}/${latent}`, title: `latent ${latent}: activation ${small(value)}`, onclick: () => { go(step.name, latent, true); $("browser").scrollIntoView(); } },
              make("span", { class: "tag" }, i === undefined ? "" : tag(layer, i)), make("span", { class: "num" }, String(latent))));
          }
          line.append(cell);
        }
        body.append(line);
      }
      table.append(body);
      const same = (event, on) => {
        const key = event.target.closest?.("button")?.dataset.same;
        if (key) table.querySelectorAll("button").forEach((button) => button.classList.toggle("same", on && button.dataset.same === key));
      };
      for (const [kind, on] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) table.addEventListener(kind, (event) => same(event, on));
    }
  }
})();
