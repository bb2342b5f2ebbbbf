"use strict";
// Films: draw one step of an episode into the groups of its picture. Without scripts the whole path is shown instead.
(() => {
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const svg = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return node;
  };
  const line = (points, attributes = {}) => svg("polyline", { points: points.map((p) => p.join(",")).join(" "), ...attributes });

  const costs = (decision) => {
    const terms = Object.entries(decision.cost).map(([name, share]) => name + " " + Number(share.toPrecision(3)));
    return "plan expected to cost " + terms.join(" + ") + (decision.tied > 1 ? "; " + decision.tied + " candidates tie" : "");
  };

  for (const film of document.querySelectorAll(".film")) {
    const data = JSON.parse(film.querySelector("script").textContent);
    const group = (name) => film.querySelector("g." + name);
    const [fan, past, plan, dot] = ["fan", "past", "plan", "dot"].map(group);
    const controls = film.querySelector(".controls");
    const [button, slider, output] = ["button", "input", "output"].map((name) => controls.querySelector(name));
    const said = film.querySelector(".said");
    const last = data.path.length - 1;
    let timer = null;
    slider.max = last;
    controls.hidden = false;
    group("still").remove();

    const show = (step) => {
      // The latest decision: plans are kept for several steps when replanning is rare.
      const decision = step < last ? data.fans.filter((entry) => entry.step <= step).pop() : null;
      const courses = decision ? decision.fan : [];
      fan.replaceChildren(...courses.map((points, rank) => line(points, { opacity: 0.9 - 0.7 * (rank / Math.max(1, courses.length - 1)) })).reverse());
      plan.replaceChildren(...(decision ? [line(decision.plan)] : []));
      past.replaceChildren(line(data.path.slice(0, step + 1)));
      dot.replaceChildren(svg("circle", { cx: data.path[step][0], cy: data.path[step][1], r: 1.9 }));
      output.textContent = step + " / " + last;
      said.textContent = decision ? costs(decision) : "";
      slider.value = step;
    };
    const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
    const play = () => {
      if (timer) return;
      button.textContent = "Pause";
      let rest = 0;
      timer = setInterval(() => {
        const step = Number(slider.value);
        if (step < last) show(step + 1);
        else if (++rest > 8) { rest = 0; show(0); }
      }, 170);
    };
    let chosen = false;
    button.addEventListener("click", () => { chosen = true; if (timer) stop(); else play(); });
    slider.addEventListener("input", () => { chosen = true; stop(); show(Number(slider.value)); });
    show(Math.floor(last / 4));
    if (!calm && "IntersectionObserver" in window) {
      new IntersectionObserver((entries) => {
        if (chosen) return;
        if (entries[0].isIntersecting) play(); else stop();
      }, { threshold: 0.6 }).observe(film);
    }
  }
})();
