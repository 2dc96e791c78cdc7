"use strict";
// Shows one round at a time with those before it, and keeps what a person enters. All texts are put
// in place with textContent: nothing in them is ever read as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const signals = [["utility", "u"], ["correctness", "v"]];
  const places = data.traces.flatMap((trace, t) => trace.rounds.map((_, r) => [t, r]));
  const at = (id) => document.getElementById(id);
  let state = { name: "", place: 0, labels: {} };

  const warn = (text) => {
    at("warning").textContent = text;
    at("warning").hidden = !text;
  };

  const load = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(data.key));
      if (kept && typeof kept.labels === "object") state = { ...state, ...kept };
      if (!(state.place in places)) state.place = 0;
    } catch (error) {
      warn("This browser keeps nothing for this page: download your labels before you close it.");
    }
  };

  const save = () => {
    try {
      localStorage.setItem(data.key, JSON.stringify(state));
    } catch (error) {
      warn("This browser keeps nothing for this page: download your labels before you close it.");
    }
  };

  const keyOf = (place) => places[place].join("/");
  const labelOf = (place) => state.labels[keyOf(place)] || { utility: null, correctness: null, note: "" };
  const change = (values) => {
    state.labels[keyOf(state.place)] = { ...labelOf(state.place), ...values };
    save();
    show();
  };
  const complete = (label) => signals.every(([name]) => label[name] !== null);
  const firstEmpty = (label) => (signals.find(([name]) => label[name] === null) || [null])[0];

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const roundElement = (round, number, asked) => {
    const section = element("section", asked ? "round asked" : "round");
    section.append(element("div", "no", `Round ${number}${asked ? " · label this one" : ""}`));
    if (round.reasoning) section.append(element("div", "think", round.reasoning));
    const act = element("div", "act");
    act.append(element("span", "verb", "searches"), element("q", "", round.query));
    const list = element("ul", "found");
    for (const passage of round.passages) {
      const details = element("details");
      details.open = asked;
      details.append(element("summary", "", passage.title), element("div", "body", passage.text));
      const item = element("li");
      item.append(details);
      list.append(item);
    }
    if (!round.passages.length) list.append(element("li", "", "No passage came back."));
    section.append(act, list);
    return section;
  };

  const signalElement = ([name, symbol], label) => {
    const row = element("div", firstEmpty(label) === name ? "signal current" : "signal");
    row.append(element("span", "", `${symbol} ${name}`));
    for (const value of [1, 0]) {
      const button = element("button", label[name] === value ? "chosen" : "", String(value));
      button.type = "button";
      button.addEventListener("click", () => change({ [name]: value }));
      row.append(button);
    }
    return row;
  };

  const show = () => {
    const [t, r] = places[state.place];
    const trace = data.traces[t];
    const label = labelOf(state.place);
    const done = places.filter((_, place) => complete(labelOf(place))).length;
    at("progress").textContent = `${done} of ${places.length} rounds labelled`;
    at("place").textContent = `round ${r + 1} of trace ${t + 1} of ${data.traces.length}`;
    at("question").textContent = trace.question;
    at("rounds").replaceChildren(
      ...trace.rounds.slice(0, r + 1).map((round, i) => roundElement(round, i + 1, i === r)),
    );
    at("signals").replaceChildren(...signals.map((signal) => signalElement(signal, label)));
    if (at("note").value !== label.note) at("note").value = label.note;
    at("previous").disabled = state.place === 0;
    at("next").disabled = state.place === places.length - 1;
  };

  const go = (place) => {
    if (!(place in places)) return;
    state.place = place;
    save();
    show();
    at("sheet").scrollIntoView({ block: "nearest" });
    const asked = document.querySelector(".round.asked");
    if (asked) asked.scrollIntoView({ block: "center" });
  };

  const nextEmpty = () => {
    const order = places.map((_, i) => (state.place + 1 + i) % places.length);
    const found = order.find((place) => !complete(labelOf(place)));
    if (found !== undefined) go(found);
  };

  const rows = () =>
    places.map(([t, r], place) => {
      const label = labelOf(place);
      return {
        id: data.traces[t].id,
        round: r + 1,
        utility: label.utility,
        correctness: label.correctness,
        note: label.note,
        labelled_by: state.name.trim(),
        digest: data.traces[t].rounds[r].digest,
      };
    });

  const download = () => {
    if (!state.name.trim()) {
      warn("Enter your name first: it goes with the labels.");
      at("name").focus();
      return;
    }
    warn("");
    const lines = rows().map((row) => JSON.stringify(row) + "\n");
    const url = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    const link = element("a");
    link.href = url;
    link.download = `labels-${state.name.trim().replace(/[^\w-]+/g, "_")}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };

  const onKey = (event) => {
    const typing = event.target.matches("input, textarea");
    if (event.key === "Escape") event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const label = labelOf(state.place);
    const empty = firstEmpty(label);
    const actions = {
      0: () => empty && change({ [empty]: 0 }),
      1: () => empty && change({ [empty]: 1 }),
      u: () => change({ utility: label.utility === 1 ? 0 : 1 }),
      v: () => change({ correctness: label.correctness === 1 ? 0 : 1 }),
      Backspace: () => change({ utility: null, correctness: null }),
      ArrowRight: () => go(state.place + 1),
      ArrowLeft: () => go(state.place - 1),
      j: nextEmpty,
      n: () => at("note").focus(),
    };
    // Enter on a button presses the button
    if (!event.target.matches("button, summary")) actions.Enter = actions.ArrowRight;
    if (Object.hasOwn(actions, event.key)) {
      event.preventDefault();
      actions[event.key]();
    }
  };

  load();
  at("name").value = state.name;
  at("name").addEventListener("input", (event) => {
    state.name = event.target.value;
    save();
  });
  at("note").addEventListener("input", (event) => change({ note: event.target.value }));
  at("previous").addEventListener("click", () => go(state.place - 1));
  at("next").addEventListener("click", () => go(state.place + 1));
  at("download").addEventListener("click", download);
  document.addEventListener("keydown", onKey);
  show();
})();
