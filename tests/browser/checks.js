// What the browser tests ask of every screen that they keep: readable, and every control named.
(() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);

  function ground(element) { // the colour behind it
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(parse(getComputedStyle(e).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  }

  function luminance(colour) { // https://www.w3.org/TR/WCAG22/#dfn-relative-luminance
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.slice(0, 3).map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function contrast(a, b) { // https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
    const [light, dark] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (light + 0.05) / (dark + 0.05);
  }

  const visible = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !e.closest(".unseen");
  const title = (e) => e.outerHTML.slice(0, 90);
  const poor = [];
  let looked = 0;
  const demand = (e, what, colour, behind, least) => {
    const ratio = contrast(over(parse(colour), behind), behind);
    looked += 1;
    if (ratio < least) poor.push(`${what} ${ratio.toFixed(2)} < ${least}: ${title(e)}`);
  };
  for (const e of document.querySelectorAll("body *")) {
    if (!visible(e) || e.disabled || e.closest("option, defs, symbol")) continue; // AA asks nothing of what is disabled
    const style = getComputedStyle(e), text = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (text || e.matches("select") || e.value) demand(e, "text", style.color, ground(e), 4.5);
    if (e.placeholder && !e.value) demand(e, "placeholder", getComputedStyle(e, "::placeholder").color, ground(e), 4.5);
    if (e.matches("svg")) demand(e, "icon", style.color, ground(e), 3);
    if (e.matches("#ask, input:not([type=radio]), dialog textarea")) {
      demand(e, "edge", style.borderTopColor, ground(e.parentElement), 3);
    }
  }
  const named = (e) => e.textContent.trim() || e.labels?.length || e.ariaLabel || e.getAttribute("aria-labelledby");
  const controls = [...document.querySelectorAll("button, select, input, textarea, dialog, [tabindex='0']")];
  return { looked, poor, unnamed: controls.filter((e) => visible(e) && !named(e)).map(title) };
})()
