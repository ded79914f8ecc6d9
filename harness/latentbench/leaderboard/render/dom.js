// What every page uses: elements, numbers as text, light and dark. Foreign text only ever becomes textContent.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const find = (id) => document.getElementById(id);
const ALPHA = 0.05;

function el(tag, properties = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text", "polyline", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Properties of a drawing that acts like a button, from the mouse and from the keyboard.
const pressed = (act) => ({
  role: "button", onclick: act,
  onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); } },
});

function digits(x, unit, decimals = DECIMALS[unit]) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  if (size >= 1e6 || (x !== 0 && size < Math.min(5e-4, 10 ** -(decimals ?? 0) / 2))) return x.toExponential(2);
  if (decimals === undefined && size >= 1e4) return Math.round(x).toLocaleString("en");
  return decimals === undefined ? String(Number(x.toPrecision(4))) : x.toFixed(decimals);
}

// A spread has the digits of its number; what rounds to nothing is said to be small.
function spread(sd, unit, decimals = DECIMALS[unit]) {
  if (decimals === undefined || sd === 0) return digits(sd, unit, decimals);
  const least = 10 ** -decimals;
  return sd < least / 2 ? `<${least.toFixed(decimals)}` : sd.toFixed(decimals);
}

const counted = (n) => n.toLocaleString("en");
const pText = (p) => (p === null || p === undefined ? "" : p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`);

function duration(seconds) {
  if (seconds === null) return "–";
  for (const [size, unit] of [[3600, "h"], [60, "min"]]) if (seconds >= size) return `${(seconds / size).toFixed(1)} ${unit}`;
  return `${seconds.toFixed(1)} s`;
}

// localStorage is refused for local files by some browsers; the choice then lasts as long as the page.
function remembered(theme) {
  try {
    if (theme) localStorage.setItem("latentbench-theme", theme);
    return localStorage.getItem("latentbench-theme");
  } catch {
    return null;
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("theme").textContent = theme === "dark" ? "Light" : "Dark";
  find("theme").setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(remembered() ?? (dark ? "dark" : "light"));
  find("theme").addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    remembered(next);
    setTheme(next);
  });
}
