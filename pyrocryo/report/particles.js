// The scatter plot of particles.
function scatter() {
  const P = run.points, n = P.index.length, canvas = $("scatter"), context = canvas.getContext("2d");
  const tip = $("tip"), sheets = P.pictures.map(p => Object.assign(new Image(), {src: p.src}));
  const latents = P.columns.filter(c => /^z\d+$/.test(c.name));
  const choices = P.columns.map((c, i) => [i, c.name]);
  if (run.seeds.length > 1 && run.seeds.length * latents.length <= 16) latents.forEach(c =>
    run.seeds.forEach((seed, s) => choices.push([`${P.columns.indexOf(c)}@${s}`, `${c.name} of seed ${seed}`])));
  const by = name => P.columns.findIndex(c => c.name === name);
  const first = ["temperature", "true 1", "time", "k-hat", "pose: in-plane angle"].map(by).find(i => i >= 0);
  options($("seed"), run.seeds.map((s, i) => [i, seedName(s)]), run.best);
  options($("across"), choices, 0);
  options($("up"), choices, latents.length > 1 ? 1 : Math.max(by("true 1"), by("ELBO"), 0));
  options($("colour"), [["", "one colour"], ...(run.seeds.length > 1 ? [["seeds", "seed (all together)"]] : []), ...choices], first ?? "");
  let view = null, dots = [], hovered = -1, kept = -1, frame = null;

  const values = (key, seed) => {
    const [i, of] = String(key).split("@"), c = P.columns[i];
    return c.each ? c.values[of === undefined ? seed : of] : c.values;
  };
  const seedNow = () => Number($("seed").value);
  const label = key => { const [i, of] = String(key).split("@"), c = P.columns[i];
    return c.name + (of === undefined ? "" : ` of seed ${run.seeds[of]}`) + (c.unit ? ` (${c.unit})` : ""); };
  const range = list => {
    const known = list.filter(v => v !== null).sort((a, b) => a - b);
    if (!known.length) return [0, 1];
    const low = known[0], high = known[known.length - 1], pad = .05 * (high - low) || 1;
    return [low - pad, high + pad];
  };

  function painter() {
    const key = $("colour").value, legend = $("legend");
    if (key === "" || key === "seeds") {
      legend.replaceChildren(...(key ? run.seeds.map((s, i) => chip(shade(`--s${i % 8}`), `seed ${s}`)) : []));
      return (i, s) => key ? shades[s % 8] : shades[0];
    }
    const c = P.columns[String(key).split("@")[0]], list = values(key, seedNow());
    const known = list.filter(v => v !== null).sort((a, b) => a - b);
    if (c.kind === "class") {
      const kinds = [...new Set(known)], colours = kinds.map((v, k) => css(blend(viridis(), kinds.length > 1 ? .08 + .84 * k / (kinds.length - 1) : .3)));
      legend.replaceChildren(text(label(key)), ...kinds.map((v, k) => chip(colours[k], short(v))));
      return i => list[i] === null ? shade("--line") : colours[kinds.indexOf(list[i])];
    }
    const angle = c.kind === "angle", q = p => known[Math.round(p * (known.length - 1))] ?? 0;
    const [low, high] = angle ? [-180, 180] : [q(.02), q(.98)], stops = angle ? WHEEL : viridis();
    const bar = document.createElement("span");
    bar.className = "scale"; bar.style.background = ramp(stops);
    legend.replaceChildren(text(label(key)), text(short(low)), bar, text(short(high)));
    return i => list[i] === null ? shade("--line") : css(blend(stops, (list[i] - low) / (high - low || 1)));
  }
  let shades = [];
  const text = words => Object.assign(document.createElement("span"), {textContent: words});
  function chip(colour, words) {
    const key = text(words), i = document.createElement("i");
    key.className = "key"; i.style.background = colour; key.prepend(i);
    return key;
  }

  function draw() {
    frame = null;
    const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    if (!box.width) return;
    canvas.width = box.width * ratio; canvas.height = box.height * ratio;
    const w = box.width, h = box.height, left = 58, right = w - 12, top = 12, bottom = h - 42;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    shades = [0, 1, 2, 3, 4, 5, 6, 7].map(k => shade(`--s${k}`));
    const seed = seedNow(), kx = $("across").value, ky = $("up").value, paint = painter();
    const together = $("colour").value === "seeds" ? run.seeds.map((_, s) => s).filter(s => s !== seed).concat(seed) : [seed];
    if (!view) view = {x: range(together.flatMap(s => values(kx, s))), y: range(together.flatMap(s => values(ky, s)))};
    const px = v => left + (v - view.x[0]) / (view.x[1] - view.x[0]) * (right - left);
    const py = v => bottom - (v - view.y[0]) / (view.y[1] - view.y[0]) * (bottom - top);
    context.font = "12px system-ui, sans-serif"; context.strokeStyle = shade("--line");
    context.fillStyle = shade("--soft"); context.lineWidth = 1;
    const rule = (x0, y0, x1, y1) => { context.beginPath(); context.moveTo(x0, y0); context.lineTo(x1, y1); context.stroke(); };
    for (const v of ticks(...view.x, 7)) {
      rule(px(v), top, px(v), bottom); context.textAlign = "center"; context.fillText(short(v), px(v), bottom + 16);
    }
    for (const v of ticks(...view.y, 6)) {
      rule(left, py(v), right, py(v)); context.textAlign = "right"; context.fillText(short(v), left - 7, py(v) + 4);
    }
    context.fillStyle = shade("--ink"); context.textAlign = "center";
    context.fillText(label(kx), (left + right) / 2, h - 8);
    context.save(); context.translate(14, (top + bottom) / 2); context.rotate(-Math.PI / 2);
    context.fillText(label(ky), 0, 0); context.restore();
    context.save(); context.beginPath(); context.rect(left, top, right - left, bottom - top); context.clip();
    dots = [];
    const radius = n > 900 ? 2.6 : 3.4;
    for (const s of together) {
      const X = values(kx, s), Y = values(ky, s);
      for (let i = 0; i < n; i++) {
        if (X[i] === null || Y[i] === null) continue;
        const dot = {x: px(X[i]), y: py(Y[i]), i, s};
        dots.push(dot);
        context.globalAlpha = .78; context.fillStyle = paint(i, s);
        context.beginPath(); context.arc(dot.x, dot.y, radius, 0, 7); context.fill();
      }
    }
    context.globalAlpha = 1; context.strokeStyle = shade("--ink");
    for (const [which, wide] of [[kept, 2.5], [hovered, 2]]) {
      if (which < 0) continue;
      const same = dots.filter(d => d.s === seed && sibling(d.i, which));
      context.lineWidth = 1; context.beginPath();
      same.forEach((d, k) => k ? context.lineTo(d.x, d.y) : context.moveTo(d.x, d.y)); context.stroke();
      context.lineWidth = wide;
      for (const d of dots) if (d.i === which) { context.beginPath(); context.arc(d.x, d.y, radius + 3.5, 0, 7); context.stroke(); }
    }
    context.restore();
  }
  const later = () => { frame ??= requestAnimationFrame(draw); };
  const sibling = (i, j) => P.frames > 1 ? Math.floor(i / P.frames) === Math.floor(j / P.frames) : i === j;

  function ticks(low, high, count) {
    const rough = (high - low) / count, ten = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(m => m * ten).find(s => s >= rough), told = [];
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) told.push(Math.abs(v) < step / 1e6 ? 0 : v);
    return told;
  }

  function picture(target, which, i) {
    const p = P.pictures[which], c = target.getContext("2d");
    c.clearRect(0, 0, target.width, target.height);
    if (!p || i >= p.count) return false;
    c.drawImage(sheets[which], i % p.columns * p.side, Math.floor(i / p.columns) * p.side, p.side, p.side, 0, 0, target.width, target.height);
    return true;
  }
  const called = i => `particle ${P.index[i]}` + (P.frame ? `, frame ${P.frame[i] + 1}` : "");

  function hover(i, x, y) {
    hovered = i; tip.hidden = i < 0; later();
    if (i < 0) return;
    const [small, words] = tip.children;
    small.hidden = !picture(small, 0, i);
    const seed = seedNow(), lines = [called(i), ...[$("across").value, $("up").value, $("colour").value].filter((k, at, all) =>
      k !== "" && k !== "seeds" && all.indexOf(k) === at).map(k => `${label(k)}: ${short(values(k, seed)[i])}`)];
    words.replaceChildren(...lines.flatMap(l => [document.createTextNode(l), document.createElement("br")]));
    const room = canvas.getBoundingClientRect();
    tip.style.left = `${Math.max(4, x + 14 + tip.offsetWidth > room.width ? x - 14 - tip.offsetWidth : x + 14)}px`;
    tip.style.top = `${Math.max(4, y + 14 + tip.offsetHeight > room.height ? y - 14 - tip.offsetHeight : y + 14)}px`;
  }
  function keep(i) {
    kept = i; later();
    const card = $("card"), head = document.createElement("h3"), table = document.createElement("table");
    head.textContent = called(i); card.replaceChildren(head);
    P.pictures.forEach((p, which) => {
      const figure = document.createElement("figure"), small = Object.assign(document.createElement("canvas"), {width: 100, height: 100});
      if (!picture(small, which, i)) return;
      small.setAttribute("role", "img"); small.setAttribute("aria-label", `${p.name} of ${called(i)}`);
      figure.append(small, Object.assign(document.createElement("figcaption"), {textContent: p.name})); card.append(figure);
    });
    if (card.children.length === 1 && P.pictures.length) card.append("No picture of it was kept.");
    for (const c of P.columns) {
      const row = table.insertRow(), v = (c.each ? c.values[seedNow()] : c.values)[i];
      row.insertCell().textContent = c.name; row.insertCell().textContent = short(v) + (v !== null && c.unit ? ` ${c.unit}` : "");
    }
    card.append(table);
  }
  function nearest(x, y, most) {
    let found = null, best = most * most;
    for (const d of dots) {
      const r = (d.x - x) ** 2 + (d.y - y) ** 2 - (d.s === seedNow() ? .5 : 0);
      if (r < best) { best = r; found = d; }
    }
    return found;
  }
  function zoom(factor, x, y) {
    const box = canvas.getBoundingClientRect(), u = ((x ?? box.width / 2) - 58) / (box.width - 70), v = (box.height - 42 - (y ?? box.height / 2)) / (box.height - 54);
    for (const [key, t] of [["x", u], ["y", v]]) {
      const [low, high] = view[key], at = low + t * (high - low);
      view[key] = [at - (at - low) * factor, at + (high - at) * factor];
    }
    later();
  }
  let drag = null;
  const place = e => { const b = canvas.getBoundingClientRect(); return [e.clientX - b.left, e.clientY - b.top]; };
  canvas.addEventListener("pointerdown", e => { const [x, y] = place(e); drag = {x, y, far: false, view: structuredClone(view)}; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", e => {
    const [x, y] = place(e);
    if (drag && (drag.far ||= Math.hypot(x - drag.x, y - drag.y) > 4)) {
      const b = canvas.getBoundingClientRect(), dx = (x - drag.x) / (b.width - 70), dy = (y - drag.y) / (b.height - 54);
      view.x = drag.view.x.map(v => v - dx * (drag.view.x[1] - drag.view.x[0]));
      view.y = drag.view.y.map(v => v + dy * (drag.view.y[1] - drag.view.y[0]));
      hover(-1); return;
    }
    const d = nearest(x, y, 14);
    hover(d ? d.i : -1, x, y);
  });
  canvas.addEventListener("pointerup", e => { const [x, y] = place(e); if (drag && !drag.far) { const d = nearest(x, y, 14); if (d) keep(d.i); } drag = null; });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", e => { if (!e.ctrlKey && !e.metaKey) return; e.preventDefault(); zoom(e.deltaY > 0 ? 1.15 : .87, ...place(e)); }, {passive: false});
  canvas.addEventListener("keydown", e => {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[e.key];
    if (e.key === "Escape") { hover(-1); return; }
    if (!way || !dots.length) return;
    e.preventDefault();
    const seed = seedNow(), own = dots.filter(d => d.s === seed), from = own.find(d => d.i === hovered) ?? own[0];
    if (!from) return;
    let next = from, best = Infinity;
    for (const d of own) {
      const dx = d.x - from.x, dy = d.y - from.y, on = dx * way[0] + dy * way[1], off = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      if (on > .5 && on + 2 * off < best) { best = on + 2 * off; next = d; }
    }
    hover(next.i, next.x, next.y); keep(next.i);
  });
  for (const id of ["seed", "across", "up", "colour"]) $(id).addEventListener("change", () => { if (id !== "colour" || $("colour").value === "seeds") view = null; hover(-1); if (kept >= 0) keep(kept); later(); });
  $("closer").addEventListener("click", () => zoom(.7)); $("farther").addEventListener("click", () => zoom(1.43));
  $("all").addEventListener("click", () => { view = null; later(); });
  addEventListener("resize", later); addEventListener("beforeprint", draw);
  night.addEventListener("change", later);
  draw();
}
