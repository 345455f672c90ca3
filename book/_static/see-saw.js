/* The see-saw: a doctor's probabilities as discs on a beam, which rests on the nurse's probability.

Every <figure class="imm-see-saw"> holds a still picture. This script puts a live one before it; the
still one stays where there is no script, and on paper. Nothing is fetched, no library is needed.

One short context with kinds e of weight π(e|s). The labels seen of each kind say F(e), the nurse
says p. What is drawn is where the training ends:

  labels alone       Q(e) = F(e)
  match directly     Q(e) = (F(e) + λ p) / (1 + λ)
  match the average  the least of  Σ π(e) H(F(e), Q(e)) + λ H(p, Σ π(e) Q(e))
*/
(() => {
  "use strict";

  const SCENES = {
    clinic: {
      label: "flu",
      weights: [0.25, 0.75],
      truth: [0.2, 0.9],
      names: ["no cough", "cough"],
      labels: 20,
      lambda: 3,
      seed: 16,
    },
    kinds: {
      label: "flu",
      weights: [0.08, 0.17, 0.12, 0.22, 0.15, 0.16, 0.1],
      truth: [0.06, 0.22, 0.41, 0.55, 0.7, 0.83, 0.95],
      names: ["kind 1", "kind 2", "kind 3", "kind 4", "kind 5", "kind 6", "kind 7"],
      labels: 40,
      lambda: 3,
      seed: 32,
    },
    counterexample: {
      label: "y = 0",
      weights: [4 / 7, 3 / 7],
      truth: [0.99, 0.01],
      names: ["e = 0", "e = 1"],
      labels: Infinity,
      lambda: 1,
      seed: 4,
    },
  };
  const LAMBDAS = [0, 0.1, 0.3, 1, 3, 10, 30, 100];
  const LABELS = [8, 20, 40, 100, 1000, Infinity];
  const MODES = [
    ["alone", "Labels alone"],
    ["direct", "Match directly"],
    ["average", "Match the average"],
  ];
  const LEAST = 0.005;
  const SVG = "http://www.w3.org/2000/svg";

  const clamp = (value) => Math.min(1 - LEAST, Math.max(LEAST, value));
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

  /* The doctor after training, one probability for each kind. */
  function train(mode, labels, weights, nurse, lambda) {
    if (mode === "alone" || lambda === 0) return labels.slice();
    if (mode === "direct") return labels.map((f) => (f + lambda * nurse) / (1 + lambda));
    /* With g the slope of λ H(p, m) at the mean m, each kind solves g q² - (1 + g) q + F = 0. Its
       root falls as g grows, so one number is left to be found, by bisection. */
    const at = (g) =>
      labels.map((f) => (2 * f) / (1 + g + Math.sqrt((1 + g) * (1 + g) - 4 * g * f)));
    const slope = (m) => lambda * ((1 - nurse) / (1 - m) - nurse / m);
    let low = -1e6;
    let high = 1e6;
    for (let i = 0; i < 200; i++) {
      const middle = (low + high) / 2;
      if (middle < slope(dot(weights, at(middle)))) low = middle;
      else high = middle;
    }
    return at((low + high) / 2);
  }

  /* Σ π(e) KL(P(e) ‖ Q(e)) in nats. */
  function divergence(weights, truth, model) {
    const part = (p, q) => (p > 0 ? p * Math.log(p / q) : 0);
    return dot(weights, truth.map((p, i) => part(p, model[i]) + part(1 - p, 1 - model[i])));
  }

  function spread(weights, model) {
    const mean = dot(weights, model);
    return Math.sqrt(dot(weights, model.map((q) => (q - mean) * (q - mean))));
  }

  /* A small generator of numbers in [0, 1), so that a seed gives the same patients everywhere. */
  function generator(seed) {
    let state = seed * 0x9e3779b9;
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /* What the labels say: the share among n π(e) patients of each kind, half a patient added to
     either answer; the truth for endless data. */
  function seen(scene, n, seed) {
    if (n === Infinity) return scene.truth.slice();
    const random = generator(seed);
    return scene.truth.map((p, e) => {
      const patients = Math.max(1, Math.round(n * scene.weights[e]));
      let ill = 0;
      for (let i = 0; i < patients; i++) ill += random() < p;
      return clamp((ill + 0.5) / (patients + 1));
    });
  }

  function element(name, attributes = {}, parent = null, text = "") {
    const made = /^(svg|g|line|circle|path|text)$/.test(name)
      ? document.createElementNS(SVG, name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  let made = 0;

  class SeeSaw {
    constructor(figure) {
      this.figure = figure;
      const scene = Object.keys(SCENES).find((name) => figure.classList.contains(`see-saw-${name}`));
      this.start = scene || "clinic";
      const mode = MODES.find(([name]) => figure.classList.contains(`see-saw-${name}`));
      this.mode = mode ? mode[0] : "alone";
      this.id = `see-saw-${++made}`;
      this.build();
      this.choose(this.start);
      new ResizeObserver(() => this.draw()).observe(this.svg);
    }

    build() {
      const root = element("div", { class: "see-saw" });
      this.root = root;
      this.svg = element("svg", { role: "group", "aria-label": "A see-saw. Arrow keys move a disc." }, root);
      const modes = element("fieldset", {}, root);
      element("legend", {}, modes, "The doctor is trained on");
      this.radios = MODES.map(([name, words]) => {
        const label = element("label", {}, modes);
        const radio = element("input", { type: "radio", name: this.id, value: name }, label);
        label.append(` ${words}`);
        radio.addEventListener("change", () => this.set({ mode: name }));
        return radio;
      });
      this.lambda = this.slider(root, "weight λ of the nurse", LAMBDAS, (value) => this.set({ weight: value }));
      this.count = this.slider(root, "labelled patients", LABELS, (value) => this.set({ labels: value }));
      const buttons = element("div", { class: "see-saw-buttons" }, root);
      this.kinds = element("button", { type: "button" }, buttons);
      this.kinds.addEventListener("click", () =>
        this.choose(this.scene === SCENES.kinds ? (this.start === "kinds" ? "clinic" : this.start) : "kinds"),
      );
      const again = element("button", { type: "button" }, buttons, "Other patients");
      again.addEventListener("click", () => this.set({ seed: this.seed + 1 }));
      const back = element("button", { type: "button" }, buttons, "Start again");
      back.addEventListener("click", () => this.choose(this.name));
      this.told = element("p", { class: "see-saw-told", "aria-live": "polite" }, root);
      this.figure.prepend(root);
      this.figure.classList.add("live");
    }

    slider(parent, words, values, moved) {
      const label = element("label", { class: "see-saw-slider" }, parent);
      element("span", {}, label, words);
      const input = element("input", { type: "range", min: 0, max: values.length - 1, step: 1 }, label);
      const output = element("output", {}, label);
      input.addEventListener("input", () => moved(values[Number(input.value)]));
      return (value) => {
        input.value = values.indexOf(value);
        output.value = value === Infinity ? "endless" : String(value);
        input.setAttribute("aria-valuetext", output.value);
      };
    }

    /* Another scene, or the same from its beginning. */
    choose(name) {
      this.name = name;
      this.scene = SCENES[name];
      this.nurse = dot(this.scene.weights, this.scene.truth);
      this.weight = this.scene.lambda;
      this.labels = this.scene.labels;
      this.seed = this.scene.seed;
      this.dragged = null;
      this.discs = null;
      this.kinds.textContent = this.name === "kinds" ? "Two kinds" : "Many kinds";
      this.set({});
    }

    set(change) {
      Object.assign(this, change);
      if ("labels" in change || "seed" in change) this.dragged = null;
      const { weights, truth } = this.scene;
      this.said = this.dragged || seen(this.scene, this.labels, this.seed);
      this.model = train(this.mode, this.said, weights, this.nurse, this.weight);
      this.radios.forEach((radio) => (radio.checked = radio.value === this.mode));
      this.lambda(this.weight);
      this.count(this.labels);
      const mean = dot(weights, this.model);
      const far = divergence(weights, truth, this.model);
      this.told.textContent =
        `Doctor's average ${mean.toFixed(3)}, nurse ${this.nurse.toFixed(3)}. ` +
        `Spread ${spread(weights, this.model).toFixed(3)}, of the truth ${spread(weights, truth).toFixed(3)}. ` +
        `KL from the truth ${far.toFixed(4)} nats.`;
      this.root.dataset.state = JSON.stringify({
        mode: this.mode,
        lambda: this.weight,
        weights,
        truth,
        nurse: this.nurse,
        labels: this.said,
        model: this.model,
        mean,
        divergence: far,
      });
      this.move();
    }

    /* Discs roll to where they belong, at once if motion is unwanted or a disc is being dragged. */
    move() {
      const goal = this.model.slice();
      const from = this.shown && this.shown.length === goal.length ? this.shown : goal;
      const still = matchMedia("(prefers-reduced-motion: reduce)").matches || this.held;
      const began = performance.now();
      cancelAnimationFrame(this.frame);
      const step = (now) => {
        const t = still ? 1 : Math.min(1, Math.max(0, (now - began) / 500));
        const eased = t * t * (3 - 2 * t);
        this.shown = goal.map((q, i) => from[i] + eased * (q - from[i]));
        this.draw();
        if (t < 1) this.frame = requestAnimationFrame(step);
      };
      step(began);
    }

    draw() {
      const width = this.svg.clientWidth;
      if (!width || !this.shown) return;
      const { weights, truth, names, label } = this.scene;
      const scale = Math.min(1, width / 560);
      const height = 204 + 30 * scale;
      const left = 26;
      const length = width - 2 * left;
      const ground = height - 40;
      const top = ground - 64;
      const x = (p) => left + length * p;
      const tilt = Math.max(-0.14, Math.min(0.14, 1.2 * (dot(weights, this.shown) - this.nurse)));
      const y = (p) => top + Math.sin(tilt) * length * (p - this.nurse);
      const radius = (e) => (14 + 46 * scale) * Math.sqrt(weights[e]) * (names.length > 2 ? 1 : 0.72) + 4;
      this.length = length;
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.setAttribute("height", height);
      if (!this.discs) this.populate();
      const { axis, beam, pivot, bar, nurseName } = this.parts;
      axis.setAttribute("d", this.axisPath(x, ground, truth));
      beam.setAttribute("d", `M${x(0)} ${y(0)}L${x(1)} ${y(1)}`);
      pivot.setAttribute("d", `M${x(this.nurse)} ${top + 3}l-16 ${ground - top - 3}h32z`);
      bar.forEach((text, i) => {
        text.setAttribute("x", x(i / 2));
        text.setAttribute("y", ground + 20);
      });
      this.parts.caption.setAttribute("x", x(0.5));
      this.parts.caption.setAttribute("y", height - 4);
      this.parts.caption.textContent = `probability of ${label}; × the truth`;
      nurseName.setAttribute("x", x(this.nurse) + (this.nurse > 0.5 ? -22 : 22));
      nurseName.setAttribute("y", ground - 8);
      nurseName.setAttribute("text-anchor", this.nurse > 0.5 ? "end" : "start");
      this.discs.forEach(({ group, ring, disc, name, hit }, e) => {
        const r = radius(e);
        for (const [circle, p] of [[ring, this.said[e]], [disc, this.shown[e]], [hit, this.shown[e]]]) {
          circle.setAttribute("cx", x(p));
          circle.setAttribute("cy", y(p) - r - 2);
          circle.setAttribute("r", circle === hit ? Math.max(r, 22) : r);
        }
        name.setAttribute("x", Math.min(width - 30, Math.max(30, x(this.shown[e]))));
        name.setAttribute("y", y(this.shown[e]) - 2 * r - 10);
        group.setAttribute("aria-valuenow", this.said[e].toFixed(3));
        group.setAttribute(
          "aria-valuetext",
          `labels say ${this.said[e].toFixed(2)}, the doctor ${this.model[e].toFixed(2)}`,
        );
      });
    }

    axisPath(x, ground, truth) {
      const ticks = [0, 0.25, 0.5, 0.75, 1].map((p) => `M${x(p)} ${ground}v5`);
      const crosses = truth.map((p) => `M${x(p) - 4} ${ground - 4}l8 8m0 -8l-8 8`);
      return `M${x(0)} ${ground}L${x(1)} ${ground}` + ticks.join("") + crosses.join("");
    }

    populate() {
      const { names, weights } = this.scene;
      this.svg.replaceChildren();
      this.parts = {
        axis: element("path", { class: "axis" }, this.svg),
        pivot: element("path", { class: "pivot" }, this.svg),
        beam: element("path", { class: "beam" }, this.svg),
        bar: ["0", "0.5", "1"].map((text) => element("text", { "text-anchor": "middle" }, this.svg, text)),
        caption: element("text", { "text-anchor": "middle" }, this.svg),
        nurseName: element("text", {}, this.svg, "nurse"),
      };
      const few = names.length < 3;
      this.discs = names.map((name, e) => {
        const group = element(
          "g",
          {
            role: "slider",
            tabindex: 0,
            class: "disc",
            "aria-label": `${name}, weight ${Math.round(100 * weights[e])} per cent`,
            "aria-valuemin": LEAST,
            "aria-valuemax": 1 - LEAST,
          },
          this.svg,
        );
        const parts = {
          group,
          hit: element("circle", { class: "hit" }, group),
          ring: element("circle", { class: "ring" }, group),
          disc: element("circle", { class: "full" }, group),
          name: element("text", { "text-anchor": "middle" }, group, few ? name : ""),
        };
        group.addEventListener("keydown", (event) => this.key(event, e));
        group.addEventListener("pointerdown", (event) => this.grab(event, e));
        return parts;
      });
    }

    /* What the labels say of kind e becomes p. */
    put(e, p) {
      const said = this.said.slice();
      said[e] = clamp(p);
      this.set({ dragged: said });
    }

    key(event, e) {
      const steps = {
        ArrowLeft: -0.01,
        ArrowDown: -0.01,
        ArrowRight: 0.01,
        ArrowUp: 0.01,
        PageDown: -0.1,
        PageUp: 0.1,
        Home: -1,
        End: 1,
      };
      if (!(event.key in steps)) return;
      event.preventDefault();
      this.put(e, this.said[e] + steps[event.key]);
    }

    grab(event, e) {
      event.preventDefault();
      const { group } = this.discs[e];
      const began = event.clientX;
      const said = this.said[e];
      this.held = true;
      group.focus({ preventScroll: true });
      group.setPointerCapture(event.pointerId);
      const dragged = (moved) => this.put(e, said + (moved.clientX - began) / this.length);
      const released = () => {
        this.held = false;
        group.removeEventListener("pointermove", dragged);
      };
      group.addEventListener("pointermove", dragged);
      group.addEventListener("lostpointercapture", released, { once: true });
    }
  }

  const begin = () => document.querySelectorAll("figure.imm-see-saw").forEach((figure) => new SeeSaw(figure));
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
