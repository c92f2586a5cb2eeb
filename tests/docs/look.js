// Return what of the page can't be read: text below the contrast that WCAG 2 AA asks for, pictures
// that did not load, and parts that are cut off or stand out of the page.
() => {
  const colour = (text) => {
    const parts = text.match(/[\d.]+/g).map(Number);
    return parts.length < 4 ? [...parts, 1] : parts;
  };
  const over = (top, ground) =>
    [0, 1, 2].map((i) => top[i] * top[3] + ground[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(colour(getComputedStyle(each).backgroundColor));
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const brightness = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };

  const found = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim();
    const element = texts.currentNode.parentElement;
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    if (!text || !box.width || !box.height || style.visibility !== "visible") continue;
    seen += 1;
    const below = ground(element);
    const pair = [over(colour(style.color), below), below].map(brightness).sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < (large ? 3 : 4.5)) found.add(`${contrast.toFixed(2)}: ${text.slice(0, 40)}`);
  }
  for (const image of document.images) {
    if (image.complete && !image.naturalWidth) found.add(`no picture: ${image.src}`);
  }
  const scrolls = (element) => {
    for (let each = element; each; each = each.parentElement) {
      if (getComputedStyle(each).overflowX !== "visible") return true;
    }
    return false;
  };
  for (const element of document.querySelectorAll("article *")) {
    const box = element.getBoundingClientRect();
    const cut = getComputedStyle(element).overflowX === "hidden" && element.clientWidth > 0;
    if (cut && element.scrollWidth > element.clientWidth + 1) found.add(`cut: ${element.tagName}`);
    if (box.width && box.right > innerWidth + 1 && !scrolls(element)) {
      found.add(`too wide: ${element.tagName}`);
    }
  }
  return { seen, found: [...found] };
};
