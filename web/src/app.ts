/** What the page knows and what it can do. Sections read the state, call the actions, and hear what changed. */

import { type Engine, failureOf } from "./engine";
import { Latest } from "./latest";
import type { CachedModel, DataSource, FolderFile, HubAddress, OpenedData, OpenedModel, Progress, SavedRun } from "./protocol";
import type { Recipe } from "./recipe";
import { RunState } from "./run-state";
import { forModel, forRun, needsInspection } from "./settings";
import type { AdapterSummary, Estimate, Failure, Inspection, RunEvent, RunSettings } from "./types";

export type Gpu = { status: "asked" } | { status: "there"; adapter: AdapterSummary } | { status: "none" };

export type Topic = "gpu" | "model" | "cached" | "data" | "inspection" | "settings" | "estimate" | "run" | "step" | "saved";

/** How to open again what was open, should the engine have to start anew. */
interface Sources {
  model?: () => Promise<OpenedModel>;
  data?: () => Promise<OpenedData>;
}

const SHOWN_EXAMPLES = 40;
const RESTARTS = 3;

export class App {
  gpu: Gpu = { status: "asked" };
  model: OpenedModel | undefined;
  modelProgress: Progress | undefined;
  modelFailure: Failure | undefined;
  cached: CachedModel[] = [];
  data: OpenedData | undefined;
  dataFailure: Failure | undefined;
  inspection: Inspection | undefined;
  inspecting = false;
  inspectionFailure: Failure | undefined;
  settings: RunSettings;
  /** Whether a person or a link has set anything: then another model leaves the settings alone. */
  settingsTouched = false;
  settingsProblems = new Map<string, string>();
  estimate: Estimate | undefined;
  estimateFailure: Failure | undefined;
  saved: SavedRun[] = [];
  savedFailure: Failure | undefined;
  readonly run = new RunState();

  private readonly listeners = new Map<Topic, (() => void)[]>();
  private readonly sources: Sources = {};
  private readonly estimating: Latest;
  private readonly inspectingAgain: Latest;
  private restarts = 0;

  constructor(
    readonly engine: Engine,
    settings: RunSettings,
  ) {
    this.settings = settings;
    this.estimating = new Latest(0, () => this.estimateNow());
    this.inspectingAgain = new Latest(250, () => this.inspectNow());
    engine.onRestart = () => this.reopen();
  }

  on(topics: Topic[], listener: () => void): void {
    for (const topic of topics) this.listeners.set(topic, [...(this.listeners.get(topic) ?? []), listener]);
  }

  changed(...topics: Topic[]): void {
    for (const listener of new Set(topics.flatMap((topic) => this.listeners.get(topic) ?? []))) listener();
  }

  async askForGpu(): Promise<void> {
    try {
      const adapter = await this.engine.call("adapter", null);
      this.gpu = adapter === null ? { status: "none" } : { status: "there", adapter };
    } catch {
      this.gpu = { status: "none" };
    }
    this.changed("gpu");
  }

  // Models

  openDemo(): Promise<void> {
    return this.openModel(() => this.engine.call("openDemo", null));
  }

  openFolder(name: string, files: FolderFile[]): Promise<void> {
    return this.openModel(() => this.engine.call("openFolder", { name, files }));
  }

  async openHub(address: HubAddress): Promise<void> {
    this.modelProgress = { what: "asking for the model", done: 0, total: 0 };
    this.changed("model");
    const listen = (progress: Progress) => {
      this.modelProgress = progress;
      this.changed("model");
    };
    await this.openModel(() => this.engine.call("openHub", address, (notice) => notice.type === "progress" && listen(notice.progress)));
    await this.listCached();
  }

  cancelDownload(): void {
    void this.engine.call("cancelDownload", null);
  }

  async listCached(): Promise<void> {
    this.cached = await this.engine.call("cachedModels", null).catch(() => []);
    this.changed("cached");
  }

  async forgetModel(address: HubAddress): Promise<void> {
    await this.engine.call("forgetModel", address).catch(() => null);
    await this.listCached();
  }

  private async openModel(open: () => Promise<OpenedModel>): Promise<void> {
    this.modelFailure = undefined;
    try {
      this.takeModel(await open());
      this.sources.model = open;
    } catch (error) {
      const failure = failureOf(error);
      this.modelFailure = failure.kind === "canceled" ? undefined : failure;
      // The engine has let go of the earlier model for the one that failed.
      if (failure.kind !== "canceled" && failure.kind !== "hub") this.model = undefined;
    } finally {
      this.modelProgress = undefined;
      this.changed("model", "run");
    }
  }

  private takeModel(model: OpenedModel): void {
    this.model = model;
    if (!this.settingsTouched) this.settings = forModel(this.settings, model);
    this.settings = { ...this.settings, model: model.dir };
    this.run.forgetResult();
    this.changed("model", "settings", "run");
    this.refresh();
  }

  // Data

  async openData(source: DataSource, content: Blob | string | null): Promise<void> {
    this.dataFailure = undefined;
    const open = () => this.engine.call("openData", { source, content });
    try {
      this.takeData(await open());
      this.sources.data = open;
    } catch (error) {
      this.dataFailure = failureOf(error);
      this.data = undefined;
    }
    this.changed("data", "run");
  }

  private takeData(data: OpenedData): void {
    this.data = data;
    this.settings = { ...this.settings, data: data.path };
    this.inspection = undefined;
    this.inspectionFailure = undefined;
    this.changed("data", "inspection", "run");
    this.refresh();
  }

  private refresh(): void {
    this.inspectingAgain.ask();
    this.estimating.ask();
  }

  private async inspectNow(): Promise<void> {
    if (this.model === undefined || this.data === undefined || this.run.active) return;
    this.inspecting = true;
    this.changed("inspection");
    try {
      this.inspection = await this.engine.call("inspect", { settings: this.settings, count: SHOWN_EXAMPLES });
      this.inspectionFailure = undefined;
    } catch (error) {
      this.inspection = undefined;
      this.inspectionFailure = failureOf(error);
    }
    this.inspecting = false;
    this.changed("inspection", "run");
    this.estimating.ask();
  }

  // Settings

  set(change: Partial<RunSettings>): void {
    const before = this.settings;
    this.settings = { ...before, ...change };
    this.settingsTouched = true;
    this.changed("settings", "run");
    this.estimating.ask();
    if (needsInspection(before, this.settings)) this.inspectingAgain.ask();
  }

  setProblem(name: string, problem: string): void {
    if (problem === "") this.settingsProblems.delete(name);
    else this.settingsProblems.set(name, problem);
    this.changed("run");
  }

  /** Tokens of the longest sequence that the run will see. */
  get sequenceLength(): number {
    const context = this.model?.summary.context ?? Number.POSITIVE_INFINITY;
    const longest = this.inspection?.report?.longest ?? Number.POSITIVE_INFINITY;
    return Math.max(2, Math.min(this.settings["max-seq-len"] ?? 512, context, longest));
  }

  private async estimateNow(): Promise<void> {
    if (this.model === undefined || this.run.active) return;
    try {
      this.estimate = await this.engine.call("estimate", { settings: this.settings, seqLen: this.sequenceLength });
      this.estimateFailure = undefined;
    } catch (error) {
      this.estimateFailure = failureOf(error);
    }
    this.changed("estimate", "run");
  }

  applyRecipe(recipe: Recipe): void {
    const { "data-format": format, ...others } = recipe.settings;
    this.settings = { ...this.settings, ...others, "data-format": { ...this.settings["data-format"], ...format } };
    this.settingsTouched = true;
    this.changed("settings");
    this.refresh();
  }

  // The run

  async train(resume?: string): Promise<void> {
    if (this.model === undefined || this.data === undefined || this.run.active) return;
    void navigator.storage?.persist?.();
    this.run.begin(resume);
    this.changed("run", "step");
    // A run that goes on keeps to the settings that it began with.
    const settings = resume === undefined ? forRun(this.settings) : this.settings;
    const request = { settings, model: this.model.source, modelName: this.model.name, data: this.data.source };
    try {
      const trained = await this.engine.call("train", resume === undefined ? request : { ...request, resume }, (notice) => {
        if (notice.type === "begun") this.run.id = notice.run;
        if (notice.type === "progress") this.run.progress = notice.progress;
        if (notice.type === "run") this.hear(notice.event);
        else this.changed("run");
      });
      this.run.end(trained.id, trained.outcome);
    } catch (error) {
      this.run.fail(failureOf(error));
    }
    this.changed("run", "step");
    await this.listSaved();
  }

  private hear(event: RunEvent): void {
    this.run.hear(event);
    if (event.type === "planned") {
      this.estimate = event;
      this.changed("estimate");
    }
    this.changed(event.type === "step" ? "step" : "run");
  }

  pause(): void {
    this.run.phase = "pausing";
    this.changed("run");
    void this.engine.call("pause", null);
  }

  continue(): void {
    this.run.phase = "training";
    this.changed("run");
    void this.engine.call("continue", null);
  }

  stop(): void {
    this.run.phase = "stopping";
    this.changed("run");
    void this.engine.call("stop", null);
  }

  async listSaved(): Promise<void> {
    const saved = await this.engine.call("savedRuns", null).catch(() => []);
    this.saved = saved.filter((run) => run.id !== this.run.id && !run.busy);
    this.changed("saved");
  }

  /** Opens a saved run, and goes on with it where it has not come to its end. */
  async goOn(run: SavedRun): Promise<void> {
    this.savedFailure = undefined;
    try {
      const restored = await this.engine.call("restoreRun", run.id, (notice) => {
        if (notice.type === "progress") this.modelProgress = notice.progress;
        this.changed("model");
      });
      this.modelProgress = undefined;
      this.settings = restored.run.settings;
      this.settingsTouched = true;
      this.model = restored.model;
      this.data = restored.data;
      this.sources.model = () => this.engine.call("restoreRun", run.id).then(({ model }) => model);
      this.sources.data = () => this.engine.call("restoreRun", run.id).then(({ data }) => data);
      this.modelFailure = undefined;
      this.dataFailure = undefined;
      this.run.restore(restored);
      this.saved = this.saved.filter(({ id }) => id !== run.id);
      this.changed("model", "data", "settings", "saved", "run", "step");
      await this.inspectNow();
      await this.estimateNow();
      if (!run.finished) await this.train(run.id);
    } catch (error) {
      this.modelProgress = undefined;
      this.savedFailure = failureOf(error);
      this.changed("saved", "model");
    }
  }

  async discard(run: SavedRun): Promise<void> {
    await this.engine.call("discardRun", run.id).catch(() => null);
    await this.listSaved();
  }

  /** A new engine knows nothing: it is given the model and the data that were open. */
  private async reopen(): Promise<void> {
    this.restarts += 1;
    // An engine that dies at once would be started for ever.
    if (this.restarts > RESTARTS) return;
    const { model, data } = this.sources;
    try {
      if (model !== undefined) this.model = await model();
      if (data !== undefined) this.data = await data();
    } catch (error) {
      this.modelFailure = failureOf(error);
    }
    this.changed("model", "data", "run");
    this.refresh();
  }
}
