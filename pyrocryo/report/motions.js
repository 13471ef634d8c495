// What moves along an axis: pictures, strips, maps and chains.
function motion() {
  const M = run.motions, slider = $("step"), big = $("picture"), bigger = big.getContext("2d");
  bigger.imageSmoothingQuality = "high";
  const loaded = M.map(m => ({density: image(m.density), change: image(m.change)}));
  options($("which"), M.map((m, i) => [i, seedName(m.seed)]), 0);
  const now = () => M[$("which").value], axis = () => Number($("axis").value);
  let timer = null, frame = null, way = 1, strips = [];
  function image(src) { const i = Object.assign(new Image(), {src}); i.decode().then(refresh, () => {}); return i; }

  function choose() {
    const m = now();
    options($("axis"), m.axes.map((a, k) => [k, a.name]), Math.min(axis() || 0, m.axes.length - 1));
    slider.max = m.steps - 1;
    strips = m.axes.map((a, k) => {
      const row = document.createElement("div"), name = document.createElement("b"), hold = document.createElement("div");
      const canvas = document.createElement("canvas"), mark = document.createElement("i");
      row.className = "strip"; name.textContent = a.name;
      canvas.width = m.side * m.steps; canvas.height = m.side;
      canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", `${a.name} from ${short(a.z[0])} to ${short(a.z[m.steps - 1])}`);
      hold.append(canvas, mark); row.append(name, hold);
      hold.addEventListener("click", e => {
        const box = hold.getBoundingClientRect(); stop(); $("axis").value = k;
        slider.value = Math.min(m.steps - 1, Math.max(0, (e.clientX - box.left) / box.width * m.steps - .5)); show();
      });
      return {row, canvas, mark};
    });
    $("strips").replaceChildren(...strips.map(s => s.row));
    refresh();
  }
  function refresh() {
    if (!strips.length) return;
    const m = now(), sheet = loaded[$("which").value][$("shown").value];
    strips.forEach((s, k) => s.canvas.getContext("2d").drawImage(sheet, 0, k * m.side, m.side * m.steps, m.side, 0, 0, s.canvas.width, m.side));
    show();
  }
  function show() {
    const m = now(), k = axis(), at = Number(slider.value), lower = Math.min(Math.floor(at), m.steps - 2), t = at - lower;
    const sheet = loaded[$("which").value][$("shown").value], z = m.axes[k].z, value = z[lower] + t * (z[lower + 1] - z[lower]);
    [[lower, 1], [lower + 1, t]].forEach(([n, alpha]) => {
      bigger.globalAlpha = alpha;
      bigger.drawImage(sheet, n * m.side, k * m.side, m.side, m.side, 0, 0, big.width, big.height);
    });
    $("where").textContent = `${m.axes[k].name} = ${value.toFixed(2).replace("-", "−")}`;
    slider.setAttribute("aria-valuetext", $("where").textContent);
    $("pictured").textContent = $("shown").value === "density" ? (m.maps ? "Density, projected along the beam." : "Density.") :
      "What is denser (red) or thinner (blue) than in the middle of the axis.";
    strips.forEach((s, n) => { s.row.classList.toggle("on", n === k);
      s.mark.style.left = `${100 * at / m.steps}%`; s.mark.style.width = `${100 / m.steps}%`; });
    if ($("solid")) space(m, k, at);
  }
  function stop() { cancelAnimationFrame(timer); timer = null; $("play").textContent = "▶ play"; $("play").setAttribute("aria-pressed", "false"); }
  function play() {
    let last = performance.now();
    $("play").textContent = "⏸ stop"; $("play").setAttribute("aria-pressed", "true");
    const tick = time => {
      let v = Number(slider.value) + way * Math.min(time - last, 100) / 1000 * 2.2;
      last = time;
      if (v >= slider.max) { v = Number(slider.max); way = -1; } else if (v <= 0) { v = 0; way = 1; }
      slider.value = v; show(); timer = requestAnimationFrame(tick);
    };
    timer = requestAnimationFrame(tick);
  }
  $("play").addEventListener("click", () => timer ? stop() : play());
  slider.addEventListener("input", () => { stop(); frame ??= requestAnimationFrame(() => { frame = null; show(); }); });
  $("axis").addEventListener("change", show); $("shown").addEventListener("change", refresh);
  $("which").addEventListener("change", choose);
  const space = $("solid") ? solid(show) : null;
  if (!space) document.querySelector(".stage").classList.add("flat");
  choose();
  if (!calm && "IntersectionObserver" in window) {
    const seen = new IntersectionObserver(e => { if (e.some(x => x.isIntersecting)) { seen.disconnect(); play(); } }, {threshold: .6});
    seen.observe($("picture"));
  }
}

// The same in space.
function solid(again) {
  const canvas = $("solid"), kind = $("kind"), level = $("level"), unpacked = new Map();
  let turn = [1, 0, 0, 0, 0.94, 0.34, 0, -0.34, 0.94], zoom = 1, fill = 1, body = null, drag = null, rest = null;
  const bytes = code => Uint8Array.from(atob(code), c => c.charCodeAt(0));
  async function voxels(packed, steps) {
    const stream = new Blob([bytes(packed.data)]).stream().pipeThrough(new DecompressionStream("gzip"));
    const all = new Uint8Array(await new Response(stream).arrayBuffer()), size = packed.side ** 3, paint = new Float32Array(size);
    for (let i = 0; i < size; i++) { let low = 255, high = 0; for (let s = 0; s < steps; s++) { const v = all[s * size + i]; if (v < low) low = v; if (v > high) high = v; } paint[i] = (high - low) / 255; }
    return {all, size, paint, mixed: new Float32Array(size)};
  }
  function traced(packed, steps) {
    const raw = new Int16Array(bytes(packed.data).buffer), n = 3 * packed.count, far = raw.reduce((m, v) => Math.max(m, Math.abs(v)), 1), paint = new Float32Array(packed.count);
    for (let i = 0; i < packed.count; i++) paint[i] = Math.hypot(...[0, 1, 2].map(d => raw[(steps - 1) * n + 3 * i + d] - raw[3 * i + d])) / 100;
    const most = Math.max(...paint, 1e-6);
    return {raw, n, far, most, paint: paint.map(v => v / most)};
  }
  function filling(body) {
    let most = 0;
    for (let i = 0; i < body.xyz.length; i += 3) most = Math.max(most, Math.hypot(body.xyz[i], body.xyz[i + 1], body.xyz[i + 2]));
    return .98 / (most || 1);
  }
  const heat = t => blend(HEAT, t * 1.6);
  // Coarse while something moves, fine a moment after.
  function draw(fine) {
    const width = canvas.getBoundingClientRect().width;
    clearTimeout(rest);
    if (!body || !width) return;
    if (fine !== true) rest = setTimeout(draw, 150, true);
    canvas.width = canvas.height = Math.round(fine === true ? Math.min(width * 2, 1100) : Math.min(width, 420));
    Solid.render(canvas, body, turn, zoom * fill, kind.value === "atoms" ? t => blend(HEAT, t) : heat);
  }
  function show(m, k, at) {
    const kinds = [...(m.atoms[k] ? [["atoms", "chain"]] : []), ...(m.maps && m.maps[k] ? [["map", "map"]] : [])];
    if (kinds.map(x => x[0]).join() !== [...kind.options].map(o => o.value).join()) options(kind, kinds, kinds.some(x => x[0] === kind.value) ? kind.value : (kinds[0] || [""])[0]);
    $("levels").hidden = kind.value !== "map";
    if (!kinds.length) { body = null; canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height); $("solidly").textContent = "No map of this axis was kept on the page: there is one in volumes/."; return; }
    const packed = (kind.value === "atoms" ? m.atoms : m.maps)[k], lower = Math.min(Math.floor(at), m.steps - 2), t = at - lower;
    let found = unpacked.get(packed);
    if (kind.value === "atoms") {
      if (!found) unpacked.set(packed, found = traced(packed, m.steps));
      const xyz = new Float32Array(found.n), {raw, n} = found;
      for (let i = 0; i < n; i++) xyz[i] = (raw[lower * n + i] * (1 - t) + raw[(lower + 1) * n + i] * t) / found.far;
      body = Solid.tube(xyz, packed.breaks, 110 / found.far, found.paint);
      fill = found.fill ??= filling(body);
      $("solidly").textContent = `${packed.count} atoms, joined along the chain; red moves most, by ${found.most.toFixed(1)} Å from end to end of the axis. Drag to turn.`;
      draw(); return;
    }
    if (!found) {
      if (typeof DecompressionStream === "undefined") { $("solidly").textContent = "This browser cannot unpack the map; a newer one can."; return; }
      unpacked.set(packed, {}); level.value = Math.round(100 * packed.level);
      voxels(packed, m.steps).then(v => { unpacked.set(packed, v); again(); }); return;
    }
    if (!found.all) return;
    const {all, size, mixed} = found;
    for (let i = 0; i < size; i++) mixed[i] = all[lower * size + i] * (1 - t) + all[(lower + 1) * size + i] * t;
    body = Solid.surface(mixed, packed.side, 2.55 * level.value + .01, found.paint);
    fill = found.fill ??= filling(body);
    $("solidly").textContent = `Surface at ${level.value} % of the highest density; red where density changes along the axis. Drag to turn.`;
    draw();
  }
  function rotate(dx, dy) {
    const c = Math.cos(dx), s = Math.sin(dx), a = Math.cos(dy), b = Math.sin(dy), R = [c, 0, s, b * s, a, -b * c, -a * s, b, a * c];
    turn = [0, 1, 2].flatMap(i => [0, 1, 2].map(j => R[3 * i] * turn[j] + R[3 * i + 1] * turn[3 + j] + R[3 * i + 2] * turn[6 + j]));
    draw();
  }
  canvas.addEventListener("pointerdown", e => { drag = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointermove", e => { if (!drag) return; rotate((e.clientX - drag[0]) / 120, (e.clientY - drag[1]) / 120); drag = [e.clientX, e.clientY]; });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { drag = null; });
  canvas.addEventListener("wheel", e => { if (!e.ctrlKey && !e.metaKey) return; e.preventDefault(); zoom *= e.deltaY > 0 ? .92 : 1.09; draw(); }, {passive: false});
  canvas.addEventListener("keydown", e => {
    const way = {ArrowLeft: [-.15, 0], ArrowRight: [.15, 0], ArrowUp: [0, -.15], ArrowDown: [0, .15]}[e.key];
    if (way) { e.preventDefault(); rotate(...way); } else if (e.key === "+" || e.key === "-") { zoom *= e.key === "+" ? 1.1 : .91; draw(); }
  });
  kind.addEventListener("change", again); level.addEventListener("input", again); addEventListener("resize", () => draw(true)); addEventListener("beforeprint", () => draw(true));
  return show;
}
