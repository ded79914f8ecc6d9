// Scales, ticks and axes of inline SVG figures.

const SIZE = { width: 520, height: 330, left: 58, right: 18, top: 14, bottom: 44 };
const NARROW = 640;

// A figure is drawn as wide as it stands on a phone, so that its text is not shrunk. True when that changed.
function fitSize() {
  const width = window.innerWidth > NARROW ? 520 : 340, changed = SIZE.width !== width;
  Object.assign(SIZE, { width, height: width === 520 ? 330 : 280 });
  return changed;
}

function scale(values, from, to, log) {
  const map = log ? Math.log : (v) => v;
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const pad = ((map(high) - map(low)) || Math.abs(map(high)) || 1) * 0.06;
  const [start, end] = [map(low) - pad, map(high) + pad];
  const place = (v) => Math.round((from + ((map(v) - start) / (end - start)) * (to - from)) * 10) / 10;
  place.middle = log ? Math.exp((start + end) / 2) : (start + end) / 2;
  place.ticks = log ? logTicks(Math.exp(start), Math.exp(end)) : ticks(start, end);
  return place;
}

function ticks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push(Number((k * step).toPrecision(6)));
  return found;
}

// Powers of two, or of ten where those would be too many.
function logTicks(low, high) {
  for (const base of [2, 10]) {
    const found = [];
    for (let n = Math.ceil(Math.log(low) / Math.log(base)); base ** n <= high; n += 1) found.push(Number((base ** n).toPrecision(base ** n < 1 ? 2 : 4)));
    if (found.length >= 2 && found.length <= 8) return found;
  }
  return ticks(low, high).filter((v) => v > 0);
}

function axis(sx, sy, x, y) {
  const { left, right, top, bottom, width, height } = SIZE;
  const label = (cls, at, text, more = {}) => el("text", { class: cls, x: at[0], y: at[1], ...more }, text);
  return [
    ...sy.ticks.flatMap((v) => [el("line", { class: "grid", x1: left, x2: width - right, y1: sy(v), y2: sy(v) }), label("tick end", [left - 8, sy(v) + 4], String(v))]),
    ...sx.ticks.flatMap((v) => [el("line", { class: "grid", x1: sx(v), x2: sx(v), y1: top, y2: height - bottom }), label("tick middle", [sx(v), height - bottom + 17], String(v))]),
    label("axis middle", [(left + width - right) / 2, height - 6], `${x.label} (${x.unit})`),
    label("axis middle", [0, 0], `${y.label} (${y.unit})`, { transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)` }),
  ];
}
