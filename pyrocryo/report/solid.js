// Meshes of maps and of traces of atoms, and a small renderer with a depth buffer: no WebGL needed.

const Solid = (() => {
  const CORNERS = [0, 1, 2, 3, 4, 5, 6, 7], EDGES = [];
  for (const a of CORNERS) for (const bit of [1, 2, 4]) if (!(a & bit)) EDGES.push([a, a | bit]);

  // Surface nets (Gibson 1998): one vertex in each cell that the surface passes, at the mean of
  // its crossings; x runs fastest in v. paint gives a colour in [0, 1] to a voxel, or is null.
  function surface(v, n, level, paint) {
    const at = new Int32Array(n * n * n).fill(-1), xyz = [], faces = [], tint = [];
    const stride = [1, n, n * n];
    const offset = CORNERS.map(c => (c & 1) + (c >> 1 & 1) * n + (c >> 2 & 1) * n * n);
    const half = (n - 1) / 2;
    for (let z = 0; z < n - 1; z++) for (let y = 0; y < n - 1; y++) for (let x = 0; x < n - 1; x++) {
      const base = x + n * (y + n * z);
      let mask = 0;
      for (let c = 0; c < 8; c++) if (v[base + offset[c]] > level) mask |= 1 << c;
      if (mask === 0 || mask === 255) continue;
      let count = 0, px = 0, py = 0, pz = 0;
      for (const [a, b] of EDGES) {
        if ((mask >> a & 1) === (mask >> b & 1)) continue;
        const va = v[base + offset[a]], t = (level - va) / (v[base + offset[b]] - va);
        px += (a & 1) + t * ((b & 1) - (a & 1));
        py += (a >> 1 & 1) + t * ((b >> 1 & 1) - (a >> 1 & 1));
        pz += (a >> 2 & 1) + t * ((b >> 2 & 1) - (a >> 2 & 1));
        count++;
      }
      at[base] = xyz.length / 3;
      xyz.push((x + px / count - half) / half, (y + py / count - half) / half,
               (z + pz / count - half) / half);
      tint.push(paint ? paint[base] : 0);
    }
    for (let z = 1; z < n - 1; z++) for (let y = 1; y < n - 1; y++) for (let x = 1; x < n - 1; x++) {
      const base = x + n * (y + n * z);
      if (at[base] < 0) continue;
      const inside = v[base] > level;
      for (let d = 0; d < 3; d++) {
        if (inside === v[base + stride[d]] > level) continue;
        const u = stride[(d + 1) % 3], w = stride[(d + 2) % 3];
        const a = at[base], b = at[base - u], c = at[base - u - w], e = at[base - w];
        if (inside) faces.push(a, b, c, a, c, e); else faces.push(a, c, b, a, e, c);
      }
    }
    return mesh(xyz, faces, tint);
  }

  // A tube through points (in units of the view), smooth between them; breaks begin new pieces.
  function tube(points, breaks, radius, paint) {
    const count = points.length / 3, smooth = count > 900 ? 1 : 3, sides = count > 900 ? 5 : 8;
    const xyz = [], faces = [], tint = [], cuts = [0, ...breaks, count];
    const get = (i, d) => points[3 * i + d];
    for (let piece = 0; piece + 1 < cuts.length; piece++) {
      const first = cuts[piece], last = cuts[piece + 1] - 1;
      let ring = -1, normal = [0.3, 0.9, 0.3];
      const total = Math.max(1, (last - first) * smooth);
      for (let s = 0; s <= total; s++) {
        const i = Math.min(first + Math.floor(s / smooth), last), t = s / smooth - Math.floor(s / smooth);
        const p = [Math.max(i - 1, first), i, Math.min(i + 1, last), Math.min(i + 2, last)];
        const centre = [0, 1, 2].map(d => spline(...p.map(k => get(k, d)), t));
        let along = [0, 1, 2].map(d => slope(...p.map(k => get(k, d)), t));
        if (Math.hypot(...along) < 1e-9) along = [0, 0, 1];
        along = unit(along);
        const dot = normal[0] * along[0] + normal[1] * along[1] + normal[2] * along[2];
        normal = normal.map((x, d) => x - dot * along[d]);
        if (Math.hypot(...normal) < 1e-6) normal = cross(along, Math.abs(along[0]) < .9 ? [1, 0, 0] : [0, 1, 0]);
        normal = unit(normal);
        const other = cross(along, normal), start = xyz.length / 3;
        for (let k = 0; k < sides; k++) {
          const c = radius * Math.cos(2 * Math.PI * k / sides), q = radius * Math.sin(2 * Math.PI * k / sides);
          for (let d = 0; d < 3; d++) xyz.push(centre[d] + c * normal[d] + q * other[d]);
          tint.push(paint ? paint[i] * (1 - t) + paint[p[2]] * t : 0);
        }
        if (ring >= 0) for (let k = 0; k < sides; k++) {
          const m = (k + 1) % sides;
          faces.push(ring + k, ring + m, start + k, ring + m, start + m, start + k);
        }
        ring = start;
      }
    }
    return mesh(xyz, faces, tint);
  }

  const spline = (a, b, c, d, t) =>
    b + t * ((c - a) / 2 + t * (a - 2.5 * b + 2 * c - d / 2 + t * (1.5 * (b - c) + (d - a) / 2)));
  const slope = (a, b, c, d, t) =>
    (c - a) / 2 + t * (2 * a - 5 * b + 4 * c - d + t * (4.5 * (b - c) + 1.5 * (d - a)));
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const unit = a => { const l = Math.hypot(...a) || 1; return a.map(x => x / l); };

  function mesh(xyz, faces, tint) {
    const p = Float32Array.from(xyz), f = Uint32Array.from(faces), normal = new Float32Array(p.length);
    for (let i = 0; i < f.length; i += 3) {
      const a = 3 * f[i], b = 3 * f[i + 1], c = 3 * f[i + 2];
      const ux = p[b] - p[a], uy = p[b + 1] - p[a + 1], uz = p[b + 2] - p[a + 2];
      const vx = p[c] - p[a], vy = p[c + 1] - p[a + 1], vz = p[c + 2] - p[a + 2];
      const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
      for (const k of [a, b, c]) { normal[k] += nx; normal[k + 1] += ny; normal[k + 2] += nz; }
    }
    return {xyz: p, faces: f, normal, tint: Float32Array.from(tint)};
  }

  // turn is a 3 x 3 matrix, row by row; colour gives [r, g, b] (0 to 255) for a tint.
  function render(canvas, body, turn, zoom, colour) {
    const w = canvas.width, h = canvas.height, context = canvas.getContext("2d");
    const picture = context.createImageData(w, h), out = picture.data;
    const depth = new Float32Array(w * h).fill(-1e9);
    const n = body.xyz.length / 3, s = new Float32Array(6 * n), size = Math.min(w, h) / 2 * zoom;
    for (let i = 0; i < n; i++) {
      const x = body.xyz[3 * i], y = body.xyz[3 * i + 1], z = body.xyz[3 * i + 2];
      const X = turn[0] * x + turn[1] * y + turn[2] * z, Y = turn[3] * x + turn[4] * y + turn[5] * z;
      const Z = turn[6] * x + turn[7] * y + turn[8] * z, near = 4 / (4 - Z);
      const a = body.normal[3 * i], b = body.normal[3 * i + 1], c = body.normal[3 * i + 2];
      let nx = turn[0] * a + turn[1] * b + turn[2] * c, ny = turn[3] * a + turn[4] * b + turn[5] * c;
      let nz = turn[6] * a + turn[7] * b + turn[8] * c, l = Math.hypot(nx, ny, nz) || 1;
      if (nz < 0) l = -l;
      nx /= l; ny /= l; nz /= l;
      const key = Math.max(0, .45 * nx + .55 * ny + .7 * nz), shine = Math.pow(Math.max(0, .23 * nx + .28 * ny + .93 * nz), 24);
      const light = (.3 + .2 * nz + .55 * key) * (.85 + .15 * Math.max(-1, Math.min(1, Z)));
      const [r, g, d] = colour(body.tint[i]), k = 6 * i;
      s[k] = w / 2 + size * near * X; s[k + 1] = h / 2 - size * near * Y; s[k + 2] = Z;
      s[k + 3] = Math.min(255, r * light + 60 * shine);
      s[k + 4] = Math.min(255, g * light + 60 * shine);
      s[k + 5] = Math.min(255, d * light + 60 * shine);
    }
    for (let i = 0; i < body.faces.length; i += 3) {
      const a = 6 * body.faces[i], b = 6 * body.faces[i + 1], c = 6 * body.faces[i + 2];
      const ax = s[a], ay = s[a + 1], bx = s[b], by = s[b + 1], cx = s[c], cy = s[c + 1];
      const area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax);
      if (area === 0) continue;
      const x0 = Math.max(0, Math.ceil(Math.min(ax, bx, cx))), x1 = Math.min(w - 1, Math.floor(Math.max(ax, bx, cx)));
      const y0 = Math.max(0, Math.ceil(Math.min(ay, by, cy))), y1 = Math.min(h - 1, Math.floor(Math.max(ay, by, cy)));
      const dp = (by - cy) / area, dq = (cy - ay) / area;
      for (let y = y0; y <= y1; y++) for (let x = x0, p = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area,
        q = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area; x <= x1; x++, p += dp, q += dq) {
        const r = 1 - p - q;
        if (p < 0 || q < 0 || r < 0) continue;
        const z = p * s[a + 2] + q * s[b + 2] + r * s[c + 2], at = y * w + x;
        if (z <= depth[at]) continue;
        depth[at] = z;
        for (let d = 3; d < 6; d++) out[4 * at + d - 3] = p * s[a + d] + q * s[b + d] + r * s[c + d];
        out[4 * at + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }

  return {surface, tube, render};
})();
