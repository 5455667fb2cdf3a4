/**
 * The figures of the lesson: a block of a weight in 4 bits, what an adapter adds to a linear layer, the singular values of that, and the
 * memory of three methods. The numbers come from the engine, and never while a run has it.
 */

import "../style/lesson.css";
import type { App } from "../app";
import { failureOf } from "../engine";
import type { ModelMemory } from "../protocol";
import type { Estimate, ModuleUpdate, WeightBlock } from "../types";
import { ariaLabel, h, show, verbatim } from "./dom";
import * as format from "./format";
import { bars, caption, dataOf, type Figure, factList, figure, legend, MARGIN, numberTable, picture, svg, tick } from "./lesson-parts";
import { button, field, select } from "./parts";

const WAITING = "The figures wait until the run has ended.";
const ADAPTED = "W x + (alpha / r) B A x";
const ADDED = "(alpha / r) B A x";
const [BLOCK_HEIGHT, OUTPUTS_HEIGHT, ADDED_HEIGHT, VALUES_HEIGHT] = [340, 200, 120, 160];
const METHODS = ["Full training", "LoRA", "QLoRA"];

/** Draws the figures in `place`, and answers with what makes them follow the model and the run on screen. */
export function lesson(app: App, place: HTMLElement): () => void {
  const block = blockFigure(app);
  const update = updateFigures(app);
  const memory = memoryFigure(app);
  place.append(block.element, ...update.elements, memory.element);
  return () => {
    block.follow();
    update.follow();
    memory.follow();
  };
}

/**
 * Draws the answers of the engine, of several questions only that of the newest. Says whether nothing has gone wrong: an engine that is
 * replaced answers nothing, and is asked anew.
 */
function asker<Answer>(shown: Figure[], draw: (answer: Answer) => void): (question: Promise<Answer>) => Promise<boolean> {
  let newest: Promise<Answer> | undefined;
  return async (question) => {
    newest = question;
    try {
      const answer = await question;
      if (newest !== question) return true;
      for (const { notices, body } of shown) {
        notices.clear();
        show(body, true);
      }
      draw(answer);
      return true;
    } catch (error) {
      const failure = failureOf(error);
      if (newest === question && failure.kind !== "canceled") for (const { notices } of shown) notices.fail(failure);
      return newest !== question;
    }
  };
}

/** Says why there is nothing to draw. */
function sayInstead(shown: Figure[], text: string): void {
  for (const { notices, body } of shown) {
    notices.say(text);
    show(body, false);
  }
}

/** Puts names into a list, unless they stand there. */
function offer(list: HTMLSelectElement, names: string[]): void {
  if (list.options.length === names.length && names.every((name, at) => list.options[at]?.text === name)) return;
  list.replaceChildren(...names.map((name, at) => h("option", { value: String(at) }, verbatim(name))));
}

function blockFigure(app: App): { element: HTMLElement; follow(): void } {
  const title = "A weight in 4 bits";
  const matrix = field(
    "Matrix",
    select([], () => void ask(0)),
  );
  const another = button("Another block", () => void ask(block + 1));
  const position = caption();
  const drawing = picture(BLOCK_HEIGHT);
  const signs = legend([
    ["weight", "weight ÷ absmax"],
    ["stored", "the level that is stored"],
    ["level", "levels of NF4"],
  ]);
  const facts = factList();
  const table = numberTable(title, ["Weight", "Value", "Code", "Level", "Decoded", "Error"]);
  const shown = figure(
    title,
    "A block is 64 weights of a matrix, and absmax is the largest magnitude among them. Each weight is divided by absmax and becomes a code of 4 bits: the number of the nearest of the 16 levels of NF4. The levels are quantiles of a normal distribution, so most of them lie near 0, as most weights do.",
    "w ≈ absmax × level[code]",
    h("div", { class: "fields link" }, matrix.element, h("div", { class: "field-button" }, another)),
    position.element,
    signs,
    drawing.element,
    facts.element,
    table.element,
  );
  let [dir, block] = ["", 0];
  const draw = (answer: WeightBlock) => {
    block = answer.block;
    offer(matrix.input, answer.matrices);
    matrix.input.value = String(answer.matrices.indexOf(answer.matrix));
    position.set(`Block ${format.count(block + 1)} of ${format.count(answer.blocks)}`);
    const error = format.digits(answer.error);
    drawing.draw(
      `64 weights and the levels that they are stored as; absmax ${format.digits(answer.absmax)}, root mean square of the errors ${error}`,
      (width) => drawBlock(width, answer),
    );
    facts.set([
      ["absmax", format.digits(answer.absmax)],
      ["Root mean square of the errors", error],
    ]);
    table.set(
      answer.weights.map((weight, i) => {
        const [code, decoded] = [answer.codes[i] as number, answer.decoded[i] as number];
        return [weight, code, answer.levels[code] as number, decoded, weight - decoded];
      }),
    );
  };
  const put = asker([shown], draw);
  const ask = (wanted: number) => {
    const name = matrix.input.selectedOptions[0]?.text;
    return put(app.engine.call("lessonBlock", { model: dir, matrix: name, block: wanted }));
  };
  let drawn = "";
  const follow = () => {
    matrix.input.disabled = another.disabled = app.run.active;
    const wanted = app.model?.dir ?? "";
    if (wanted === "") sayInstead([shown], "Choose a model first.");
    else if (app.run.active && wanted !== drawn) sayInstead([shown], WAITING);
    if (wanted === drawn || app.run.active) return;
    drawn = dir = wanted;
    if (wanted === "") return;
    matrix.input.replaceChildren();
    void ask(0).then((well) => {
      if (!well && wanted === drawn) drawn = "";
    });
  };
  return { element: shown.element, follow };
}

/** Each weight over its number, as a part of absmax, with a line to the level that it is stored as. */
function drawBlock(width: number, { weights, absmax, levels, codes }: WeightBlock): SVGElement[] {
  const y = (value: number) => 10 + ((1 - value) / 2) * (BLOCK_HEIGHT - 20);
  const step = (width - MARGIN) / weights.length;
  const lines = levels.map((level) => svg("line", { class: "level", x1: MARGIN, x2: width, y1: y(level), y2: y(level) }));
  const marks = weights.flatMap((weight, i) => {
    const x = MARGIN + step * (i + 0.5);
    const [own, stored] = [y(weight / (absmax || 1)), y(levels[codes[i] as number] as number)];
    return [
      svg("line", { class: "error", x1: x, x2: x, y1: own, y2: stored }),
      svg("line", { class: "stored", x1: x - step * 0.42, x2: x + step * 0.42, y1: stored, y2: stored }),
      svg("circle", { class: "weight", cx: x, cy: own, r: Math.min(3, step * 0.35) }),
    ];
  });
  return [...lines, ...marks, ...[1, 0, -1].map((value) => tick(y(value), value))];
}

/** A token of the data on screen, to have an input that is no accident. */
function tokenOf(app: App): { id: number; text: string } {
  const tokens = app.inspection?.examples.flatMap((example) => example.tokens) ?? [];
  const word = tokens.find(({ text, trained }) => trained && /\p{L}{2}/u.test(text)) ?? tokens[0];
  return word === undefined ? { id: 0, text: "0" } : { id: word.id, text: word.text.trim() };
}

/** Two figures of one answer: what the adapter adds to one module, and the singular values of that. */
function updateFigures(app: App): { elements: HTMLElement[]; follow(): void } {
  const title = "What the adapter adds";
  const module = field(
    "Module",
    select([], () => void ask()),
  );
  const signs = legend([
    ["base", verbatim("W x")],
    ["adapted", verbatim(ADAPTED)],
  ]);
  const outputs = picture(OUTPUTS_HEIGHT);
  const alone = picture(ADDED_HEIGHT);
  const [facts, about] = [factList(), caption()];
  const table = numberTable(title, ["Output", verbatim("W x"), verbatim(ADDED), verbatim(ADAPTED)]);
  const added = figure(
    title,
    "Training does not change the weight W. The adapter adds the product of two thin matrices: A takes the input x down to r numbers, and B takes these up to the outputs. B begins at 0, so a new adapter changes nothing.",
    `y = ${ADAPTED}`,
    module.element,
    about.element,
    signs,
    outputs.element,
    h("p", { class: "hint" }, `${ADDED} alone, on a scale of its own`),
    alone.element,
    facts.element,
    table.element,
  );
  const valuesTitle = "Singular values of the update";
  const values = picture(VALUES_HEIGHT);
  const norms = factList();
  const valuesTable = numberTable(valuesTitle, ["Number", "Singular value"]);
  const singular = figure(
    valuesTitle,
    "A singular value says how strongly the update acts in one direction. At most r of them are not 0: this is what low rank means. If the last ones are close to 0, a smaller rank would have been enough.",
    "(alpha / r) B A = σ₁ u₁ v₁ᵀ + … + σᵣ uᵣ vᵣᵀ",
    values.element,
    norms.element,
    valuesTable.element,
  );
  const both = [added, singular];
  let [key, dir, adapter, token] = ["", "", "", { id: 0, text: "" }];
  const draw = (answer: ModuleUpdate) => {
    const { base, update, merged, rank, inputs, outputs: rows, singular_values } = answer;
    offer(module.input, answer.modules);
    module.input.value = String(answer.module);
    about.set(`x is the embedding of a token, divided by its root mean square. The bars are the first ${base.length} outputs.`);
    outputs.draw(`The first ${base.length} outputs without and with the adapter`, (width) =>
      bars(width, OUTPUTS_HEIGHT, [
        { values: base, kind: "base" },
        { values: merged, kind: "adapted" },
      ]),
    );
    alone.draw(`What the adapter adds to the first ${base.length} outputs`, (width) =>
      bars(width, ADDED_HEIGHT, [{ values: update, kind: "adapted" }]),
    );
    facts.set([
      ["Token", token.text],
      ["r", String(rank)],
      ["alpha / r", format.digits(answer.scale)],
      ["Numbers in W", format.count(rows * inputs)],
      ["Numbers in A and B", format.count(rank * (rows + inputs))],
    ]);
    table.set(base.map((value, i) => [value, update[i] as number, merged[i] as number]));
    const [first = 0, last = 0] = [singular_values[0], singular_values.at(-1)];
    values.draw(`${singular_values.length} singular values, from ${format.digits(first)} to ${format.digits(last)}`, (width) =>
      bars(width, VALUES_HEIGHT, [{ values: singular_values, kind: "adapted" }]),
    );
    norms.set([
      ["Module", answer.modules[answer.module] as string],
      ["Frobenius norm of the update", format.digits(answer.update_norm)],
      ["Frobenius norm of W", format.digits(answer.weight_norm)],
    ]);
    valuesTable.set(singular_values.map((value) => [value]));
  };
  const put = asker(both, draw);
  const ask = () =>
    put(app.engine.call("lessonUpdate", { model: dir, adapter, module: Math.max(0, module.input.selectedIndex), token: token.id }));
  const follow = () => {
    module.input.disabled = app.run.active;
    if (app.run.active) {
      if (key === "") sayInstead(both, WAITING);
      return;
    }
    const { model, run } = app;
    const wanted = model !== undefined && run.hasResult ? `${model.dir} ${run.id} ${run.step}` : "";
    if (wanted === "") sayInstead(both, "This figure shows an adapter, once a run has made one.");
    if (wanted === key) return;
    key = wanted;
    if (model === undefined || wanted === "") return;
    [dir, adapter, token] = [model.dir, `/runs/${run.id}`, tokenOf(app)];
    module.input.replaceChildren();
    void ask().then((well) => {
      if (!well && wanted === key) key = "";
    });
  };
  return { elements: both.map(({ element }) => element), follow };
}

function memoryFigure(app: App): { element: HTMLElement; follow(): void } {
  const [charts, key] = [h("div", { class: "lesson-memory" }), h("ul", { class: "memory-legend" })];
  const shown = figure(
    "Memory of full training, LoRA and QLoRA",
    "Full training keeps 16 bytes for each of the P weights: the weight, its gradient and two moments of AdamW, in 32 bits each. LoRA keeps the weights in 16 bits, and gradients and moments of the adapter alone. QLoRA also stores the linear layers in 4 bits.",
    "full ≈ 16 P,  LoRA ≈ 2 P,  QLoRA ≈ 0.5 P",
    h(
      "p",
      { class: "hint" },
      "Estimates for one sequence of 512 tokens and rank 16, with activations. In QLoRA, embedding and head stay in 16 bits.",
    ),
    charts,
    key,
  );
  const draw = (answer: ModelMemory[]) => {
    const all = answer.flatMap(({ plans }) => plans);
    const most = Math.max(...all.map(({ total }) => total));
    charts.replaceChildren(
      ...answer.map(({ model, plans }) => {
        const name = `${model}, ${format.parameters(plans[0]?.trained_parameters ?? 0)} parameters`;
        return h("div", {}, h("h4", {}, name), ...plans.map((plan, at) => memoryLine(METHODS[at] as string, plan, most)));
      }),
    );
    const labels = new Map(all.flatMap(({ categories }) => categories.map(({ name, label }) => [name, label] as const)));
    key.replaceChildren(
      ...[...labels].map(([name, label]) =>
        h("li", {}, h("span", { class: `swatch category ${name}`, aria: { hidden: "true" } }), h("span", {}, label)),
      ),
    );
  };
  const put = asker([shown], draw);
  let asked = false;
  const follow = () => {
    if (asked) return;
    if (app.run.active) {
      sayInstead([shown], WAITING);
      return;
    }
    asked = true;
    void put(app.engine.call("lessonMemory", null)).then((well) => {
      asked = well;
    });
  };
  return { element: shown.element, follow };
}

/** The plan of one method as a bar, as long as its share of the largest. */
function memoryLine(method: string, plan: Estimate, most: number): HTMLElement {
  const bar = h("div", { class: "memory-bar", role: "img" });
  const parts = plan.categories.map(({ label, bytes }) => `${label} ${format.bytes(bytes)}`).join(", ");
  ariaLabel(bar, `${format.bytes(plan.total)}: ${parts}`);
  bar.style.width = `${(100 * plan.total) / most}%`;
  bar.append(
    ...plan.categories.map(({ name, label, bytes }) => {
      const part = h("span", { class: `category ${name}`, title: `${label}: ${format.bytes(bytes)}` });
      part.style.flexGrow = String(bytes);
      return part;
    }),
  );
  const value = dataOf(plan.total, format.bytes(plan.total));
  return h("div", { class: "lesson-method" }, h("span", {}, method), h("div", {}, bar), value);
}
