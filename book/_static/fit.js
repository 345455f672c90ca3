/* Formulas that are wider than their column are set smaller, down to six tenths; below that they scroll. */
(() => {
  "use strict";
  const LEAST = 0.6;

  function fit() {
    for (const formula of document.querySelectorAll(".bd-article mjx-container")) {
      formula.style.fontSize = "";
      const inner = formula.querySelector("mjx-math");
      const room = formula.hasAttribute("display")
        ? formula
        : formula.closest("p, li, td, th, dd, figcaption, h1, h2, h3") || formula.parentElement;
      const style = getComputedStyle(room);
      const width = room.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
      const wanted = inner ? inner.getBoundingClientRect().width : 0;
      if (width <= 0 || wanted <= width) continue;
      const size = parseFloat(getComputedStyle(formula).fontSize);
      formula.style.fontSize = `${Math.max(LEAST, (0.99 * width) / wanted) * size}px`;
    }
  }

  let waiting = 0;
  addEventListener("load", async () => {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    await document.fonts.ready;
    fit();
    new ResizeObserver(() => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(fit);
    }).observe(document.querySelector(".bd-article") || document.body);
  });
})();
