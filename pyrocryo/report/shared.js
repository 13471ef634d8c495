// Helpers, and colours.
const run = JSON.parse(document.getElementById("run").textContent);
const $ = id => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const night = matchMedia("(prefers-color-scheme: dark)");
const shade = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const seedName = s => run.seeds.length > 1 && s === run.seeds[run.best] ? `${s} (best ELBO)` : String(s);
const short = v => v === null ? "–" : String(Number(v.toPrecision(3))).replace("-", "−");
document.documentElement.classList.add("js");

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen))));
}

const VIRIDIS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
                 [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];
const viridis = () => night.matches ? VIRIDIS.slice(2) : VIRIDIS;  // not darker than what is behind
const WHEEL = [[226, 78, 88], [214, 144, 30], [126, 168, 40], [26, 168, 136], [48, 138, 214],
               [146, 100, 222], [214, 80, 170], [226, 78, 88]];
const HEAT = [[122, 146, 172], [150, 158, 168], [222, 168, 100], [230, 112, 52], [196, 44, 32]];
function blend(stops, t) {
  const x = Math.min(Math.max(t, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(x), stops.length - 2);
  return stops[i].map((v, d) => v + (x - i) * (stops[i + 1][d] - v));
}
const css = rgb => `rgb(${rgb.map(Math.round).join()})`;
const ramp = stops => `linear-gradient(90deg, ${stops.map(css).join()})`;
