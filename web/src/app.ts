/** What the page knows and what it can do. Sections read the state, call the actions, and hear what changed. */

import { type Engine, EngineError, failureOf } from "./engine";
import { Latest } from "./latest";
import { clock } from "./page/format";
import type {
  CachedModel,
  DataSource,
  FolderFile,
  GpuAdapter,
  HubAddress,
  HubChoice,
  HubOffer,
  ModelSource,
  OpenedAdapter,
  OpenedData,
  OpenedModel,
  Progress,
  SavedRun,
} from "./protocol";
import { type PreferredAnswer, toJsonl } from "./preferences";
import type { Recipe } from "./recipe";
import { RunState } from "./run-state";
import { forModel, forRun, needsInspection, stepsPerEpoch } from "./settings";
import type { Estimate, Failure, Inspection, RunEvent, RunSettings } from "./types";

export type Gpu = { status: "asked" } | { status: "there"; adapter: GpuAdapter } | { status: "none" };

export type Topic =
  | "gpu"
  | "model"
  | "cached"
  | "data"
  | "inspection"
  | "reading"
  | "settings"
  | "estimate"
  | "run"
  | "step"
  | "saved"
  | "adapters"
  | "preferences";

/** An adapter that questions may go to. */
export interface KnownAdapter {
  /** Its directory in the engine. */
  dir: string;
  title: string;
  /** The base that its files name, where that is worth saying. */
  base: string;
  /** It was opened from a file or a hub, and can be removed. */
  opened: boolean;
}

/** What the controls of the page say, whatever is open in the engine. */
interface Chosen {
  model: ModelSource["kind"];
  /** The address in the fields; undefined where they hold none. */
  hub: HubAddress | undefined;
  data: DataSource["kind"];
  /** The text in the box is another than the one that was opened. */
  textChanged: boolean;
}

/** How to open again what was open, should the engine have to start anew. */
interface Sources {
  model?: () => Promise<OpenedModel>;
  data?: () => Promise<OpenedData>;
}

const SHOWN_EXAMPLES = 40;
/** Bytes of data that take so long to read that a first part is shown before. */
const LONG_DATA = 5_000_000;
const RESTARTS = 3;
/** Where this tab keeps its preferences. */
const PREFERENCES = "loraine-preferences";
/** TRL's learning rate for preferences, twentyfold for LoRA; the built-in model, which is tiny, needs more. */
const [PREFERENCE_LR, DEMO_PREFERENCE_LR] = [2e-5, 1e-3];
const SLOW_MS = 400;

/** The directory of a run's adapter in the engine. */
const runAdapter = (id: string): string => `/runs/${id}`;

const sameAddress = (a: HubAddress | undefined, b: HubAddress): boolean =>
  a !== undefined && a.base === b.base && a.id === b.id && a.revision === b.revision && a.file === b.file;

function readPreferences(): PreferredAnswer[] {
  try {
    const kept: unknown = JSON.parse(sessionStorage.getItem(PREFERENCES) ?? "[]");
    return Array.isArray(kept) ? (kept as PreferredAnswer[]) : [];
  } catch {
    return [];
  }
}

export class App {
  gpu: Gpu = { status: "asked" };
  readonly chosen: Chosen = { model: "demo", hub: undefined, data: "example", textChanged: false };
  modelProgress: Progress | undefined;
  modelFailure: Failure | undefined;
  offer: HubOffer | undefined;
  /** The GGUF files of the repository that was looked up, of which one is to be chosen. */
  hubChoice: HubChoice | undefined;
  /** Of the hub, for gated models; the page keeps it for this session of the tab. */
  token = "";
  cached: CachedModel[] = [];
  /** Whether the browser has promised to keep its storage; undefined before it was asked. */
  persistent: boolean | undefined;
  dataFailure: Failure | undefined;
  /** How far the reading of the data is, in bytes. */
  reading: Progress | undefined;
  inspection: Inspection | undefined;
  /** The first part of long data, while the whole is read. */
  glimpse: Inspection | undefined;
  inspecting = false;
  inspectionFailure: Failure | undefined;
  settings: RunSettings;
  settingsProblems = new Map<string, string>();
  estimate: Estimate | undefined;
  estimateFailure: Failure | undefined;
  /** Adapters that were opened from files or from a hub. */
  adapters: OpenedAdapter[] = [];
  /** Directories of the adapters that a question goes to. */
  readonly compared = new Set<string>();
  /** Preferences between answers, of this tab. */
  preferences: PreferredAnswer[] = readPreferences();
  saved: SavedRun[] = [];
  savedFailure: Failure | undefined;
  /** Seconds a step took, of the last run of this tab. */
  pace = Number.NaN;
  readonly run = new RunState();
  /** Told when a run of this tab ends with an adapter. */
  onFinished: () => void = () => {};

  private openedModel: OpenedModel | undefined;
  private openedData: OpenedData | undefined;
  /** Settings that a person or a link has given a value: they stay when another model is chosen. */
  private touched = new Set<string>();
  private readonly listeners = new Map<Topic, (() => void)[]>();
  private readonly sources: Sources = {};
  private readonly estimating: Latest;
  private readonly inspectingAgain: Latest;
  private restarts = 0;
  /** Settles when a new engine has the model and the data that were open. */
  private reopening: Promise<void> = Promise.resolve();
  private calledOff = 0;
  private relisting: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly engine: Engine,
    private readonly defaults: RunSettings,
  ) {
    this.settings = defaults;
    this.estimating = new Latest(0, () => this.estimateNow());
    this.inspectingAgain = new Latest(250, () => this.inspectNow());
    engine.onRestart = () => void this.restart();
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

  /** The model that is open, if it is the one on screen. */
  get model(): OpenedModel | undefined {
    const source = this.openedModel?.source;
    if (source === undefined || source.kind !== this.chosen.model) return undefined;
    if (source.kind === "hub" && !sameAddress(this.chosen.hub, source.address)) return undefined;
    return this.openedModel;
  }

  /** Follows the controls: another source or another address was chosen. */
  chooseModel(kind: ModelSource["kind"], hub = this.chosen.hub): void {
    const before = this.model;
    this.chosen.model = kind;
    this.chosen.hub = hub;
    this.modelFailure = undefined;
    if (this.offer !== undefined && !sameAddress(hub, this.offer.address)) this.offer = undefined;
    if (this.hubChoice !== undefined && !sameAddress(hub, this.hubChoice.address)) this.hubChoice = undefined;
    this.changed("model", "run");
    if (this.model !== before) this.follow();
  }

  openDemo(): Promise<void> {
    this.chooseModel("demo");
    return this.openModel(() => this.engine.call("openDemo", null));
  }

  openFolder(name: string, files: FolderFile[]): Promise<void> {
    this.chooseModel("folder");
    return this.openModel(() => this.engine.call("openFolder", { name, files }));
  }

  /** Asks the hub what the model is and how large, without its weights. */
  async lookUp(address: HubAddress): Promise<void> {
    this.chooseModel("hub", address);
    this.offer = this.hubChoice = undefined;
    this.modelProgress = { what: "asking the hub", done: 0, total: 0 };
    this.changed("model");
    try {
      const offer = await this.engine.call("lookUp", { address, token: this.token, settings: this.settings }, (notice) => {
        if (notice.type === "progress") this.showModelProgress(notice.progress);
      });
      if (sameAddress(this.chosen.hub, address)) {
        if ("files" in offer) this.hubChoice = offer;
        else this.offer = offer;
      }
    } catch (error) {
      const failure = failureOf(error);
      this.modelFailure = failure.kind === "canceled" ? undefined : failure;
    }
    this.modelProgress = undefined;
    this.changed("model", "run");
  }

  async openHub(address: HubAddress): Promise<void> {
    this.chooseModel("hub", address);
    this.showModelProgress({ what: "asking for the model", done: 0, total: 0 });
    // Storage that the browser does not clear by itself when the disk is full. It may ask the visitor.
    this.persistent = (await navigator.storage?.persist?.().catch(() => false)) ?? false;
    const { token } = this;
    const open = () =>
      this.engine.call("openHub", { address, token }, (notice) => {
        if (notice.type === "progress") this.showModelProgress(notice.progress);
      });
    await this.openModel(open);
    await this.listCached();
  }

  private showModelProgress(progress: Progress): void {
    this.modelProgress = progress;
    this.changed("model");
  }

  cancelDownload(): void {
    void this.engine.call("cancelDownload", null);
  }

  async listCached(): Promise<void> {
    this.persistent ??= await navigator.storage?.persisted?.().catch(() => undefined);
    this.cached = await this.engine.call("cachedModels", null).catch(() => []);
    this.changed("cached");
  }

  async forgetModel(address: HubAddress): Promise<void> {
    await this.engine.call("forgetModel", address).catch(() => null);
    await this.listCached();
  }

  private async openModel(open: () => Promise<OpenedModel>): Promise<void> {
    this.modelFailure = undefined;
    if (this.reading !== undefined) await this.restartReading();
    try {
      this.takeModel(await open());
      this.sources.model = open;
    } catch (error) {
      const failure = failureOf(error);
      this.modelFailure = failure.kind === "canceled" ? undefined : failure;
      // The engine has let go of the earlier model for the one that failed.
      if (failure.kind !== "canceled" && failure.kind !== "hub") this.openedModel = undefined;
    } finally {
      this.modelProgress = undefined;
      this.changed("model", "run");
    }
  }

  private takeModel(model: OpenedModel): void {
    this.openedModel = model;
    this.offer = this.hubChoice = undefined;
    // An adapter is of one base.
    this.touched.delete("init-adapter");
    this.settings = forModel(this.defaults, this.settings, this.touched, model);
    this.run.forgetResult();
    this.changed("model", "settings", "run");
    this.follow();
  }

  // Data

  /** The data that are open, if they are the ones on screen. */
  get data(): OpenedData | undefined {
    if (this.openedData?.source.kind !== this.chosen.data) return undefined;
    return this.chosen.data === "text" && this.chosen.textChanged ? undefined : this.openedData;
  }

  /** Follows the controls: another source was chosen, or the text in the box was edited. */
  chooseData(kind: DataSource["kind"], textChanged = this.chosen.textChanged): void {
    const before = this.data;
    this.chosen.data = kind;
    this.chosen.textChanged = textChanged;
    if (this.data === before && this.dataFailure === undefined) return;
    this.dataFailure = undefined;
    this.changed("data", "run");
    if (this.data !== before) this.follow();
  }

  async openData(source: DataSource, content: Blob | string | null): Promise<void> {
    await this.stopReading();
    this.chooseData(source.kind, false);
    this.dataFailure = undefined;
    const open = () => this.engine.call("openData", { source, content });
    try {
      this.openedData = await open();
      this.settings = { ...this.settings, data: this.openedData.path };
      this.sources.data = open;
    } catch (error) {
      const failure = failureOf(error);
      this.dataFailure = failure.kind === "canceled" ? undefined : failure;
      this.openedData = undefined;
    }
    this.changed("data", "run");
    this.follow();
  }

  /** What was worked out of other data or another model is gone, and worked out anew. */
  private follow(): void {
    this.inspection = this.glimpse = undefined;
    this.inspectionFailure = undefined;
    if (this.model === undefined) {
      this.estimate = undefined;
      this.estimateFailure = undefined;
    }
    this.changed("inspection", "estimate", "run");
    this.refresh();
  }

  private refresh(): void {
    this.inspectingAgain.ask();
    this.estimating.ask();
  }

  /** Resolves when what the page shows of data and memory is of the settings as they are now. */
  async settled(): Promise<void> {
    await Promise.all([this.inspectingAgain.settled(), this.estimating.settled()]);
  }

  private async inspectNow(): Promise<void> {
    const { model, data } = this;
    if (model === undefined || data === undefined || this.run.active) return;
    this.inspecting = true;
    this.changed("inspection", "run");
    const listen = (progress: Progress) => {
      this.reading = progress;
      this.changed("reading");
    };
    // Data that are read in a moment show no bar.
    const slow = setTimeout(() => listen({ what: "reading the data", done: 0, total: 0 }), SLOW_MS);
    try {
      const request = { settings: this.settings, count: SHOWN_EXAMPLES };
      if (data.bytes > LONG_DATA) {
        this.glimpse = (await this.engine.call("glimpse", request)) ?? undefined;
        this.changed("inspection");
      }
      const inspection = await this.engine.call("inspect", request, (notice) => notice.type === "progress" && listen(notice.progress));
      if (model === this.model && data === this.data) this.inspection = inspection;
      this.inspectionFailure = undefined;
    } catch (error) {
      const failure = failureOf(error);
      this.inspection = undefined;
      this.inspectionFailure = failure.kind === "canceled" ? undefined : failure;
    }
    clearTimeout(slow);
    this.glimpse = undefined;
    this.inspecting = false;
    this.reading = undefined;
    this.changed("inspection", "reading", "settings", "run");
    this.estimating.ask();
  }

  /** Ends the reading of data that are too many; they are no longer open. */
  async stopReading(): Promise<void> {
    if (this.reading === undefined) return;
    this.openedData = undefined;
    delete this.sources.data;
    await this.restartReading();
  }

  /** An engine that reads listens to nobody: another one takes its place. */
  private async restartReading(): Promise<void> {
    this.reading = undefined;
    this.engine.cancel();
    await this.reopen();
  }

  // Settings

  set(change: Partial<RunSettings>): void {
    const before = this.settings;
    this.settings = { ...before, ...change };
    for (const key of Object.keys(change)) this.touched.add(key);
    this.changed("settings", "run");
    this.estimating.ask();
    if (needsInspection(before, this.settings)) this.inspectingAgain.ask();
  }

  /** Sets how long a run is: in steps, or in passes over the data. */
  setLength(length: { steps: number } | { epochs: number }): void {
    const { steps: _, epochs: __, ...others } = this.settings;
    this.settings = { ...others, ...length };
    this.touched.add("steps").add("epochs");
    this.changed("settings", "run");
  }

  /** Leaves a setting to the library. */
  unset(name: keyof RunSettings): void {
    const { [name]: _, ...others } = this.settings;
    this.settings = others as RunSettings;
    this.touched.delete(name);
    this.changed("settings", "run");
    this.estimating.ask();
  }

  setProblem(name: string, problem: string): void {
    if (problem === "") this.settingsProblems.delete(name);
    else this.settingsProblems.set(name, problem);
    this.changed("run");
  }

  /** Steps of one pass over the data on screen; undefined until they are read. */
  get stepsPerEpoch(): number | undefined {
    const report = this.inspection?.report;
    return report && stepsPerEpoch(this.settings, report, this.data?.source.kind === "example");
  }

  /** Steps of the whole run; undefined until the data are read. */
  get totalSteps(): number | undefined {
    if (this.settings.steps !== undefined) return this.settings.steps;
    const { stepsPerEpoch } = this;
    return stepsPerEpoch && Math.max(1, Math.ceil((this.settings.epochs ?? 1) * stepsPerEpoch));
  }

  /** Tokens of the longest sequence that the run will see. */
  get sequenceLength(): number {
    const context = this.model?.summary.context ?? Number.POSITIVE_INFINITY;
    const longest = this.inspection?.report?.longest ?? Number.POSITIVE_INFINITY;
    return Math.max(2, Math.min(this.settings["max-seq-len"] ?? 512, context, longest));
  }

  private async estimateNow(): Promise<void> {
    const { model } = this;
    if (model === undefined || this.run.active) return;
    try {
      const estimate = await this.engine.call("estimate", { settings: this.settings, seqLen: this.sequenceLength });
      if (model === this.model) this.estimate = estimate;
      this.estimateFailure = undefined;
    } catch (error) {
      const failure = failureOf(error);
      this.estimateFailure = failure.kind === "canceled" ? undefined : failure;
    }
    this.changed("estimate", "run");
  }

  applyRecipe(recipe: Recipe): void {
    const { "data-format": format, steps, epochs, ...others } = recipe.settings;
    this.settings = { ...this.settings, ...others, "data-format": { ...this.settings["data-format"], ...format } };
    for (const key of Object.keys(others)) this.touched.add(key);
    if (steps !== undefined) this.setLength({ steps });
    else if (epochs !== undefined) this.setLength({ epochs });
    this.changed("settings");
    this.refresh();
  }

  // Adapters to compare

  /** The adapter of the result, those of finished runs on this model, and those that were opened. */
  knownAdapters(): KnownAdapter[] {
    const known: KnownAdapter[] = [];
    const { run, model } = this;
    if (run.hasResult && run.id !== undefined) known.push({ dir: runAdapter(run.id), title: "This run", base: "", opened: false });
    for (const earlier of this.saved) {
      if (!earlier.finished || model === undefined || earlier.modelName !== model.name) continue;
      known.push({ dir: runAdapter(earlier.id), title: `Run of ${clock(earlier.started)}`, base: "", opened: false });
    }
    return [...known, ...this.adapters.map((adapter) => ({ ...adapter, opened: true }))];
  }

  comparedAdapters(): KnownAdapter[] {
    return this.knownAdapters().filter(({ dir }) => this.compared.has(dir));
  }

  compare(dir: string, wanted: boolean): void {
    if (wanted) this.compared.add(dir);
    else this.compared.delete(dir);
    this.changed("adapters");
  }

  async listAdapters(): Promise<void> {
    this.adapters = await this.engine.call("openedAdapters", null).catch(() => []);
    this.changed("adapters");
  }

  async openAdapter(name: string, files: FolderFile[]): Promise<void> {
    this.takeAdapter(await this.engine.call("openAdapter", { name, files }));
  }

  async fetchAdapter(address: HubAddress, tell: (what: string, done: number, total: number) => void): Promise<void> {
    const request = { address, token: this.token };
    const adapter = await this.engine.call("fetchAdapter", request, (notice) => {
      if (notice.type === "progress") tell(notice.progress.what, notice.progress.done, notice.progress.total);
    });
    this.takeAdapter(adapter);
  }

  private takeAdapter(adapter: OpenedAdapter): void {
    this.adapters = [...this.adapters, adapter];
    this.compare(adapter.dir, true);
  }

  async forgetAdapter(dir: string): Promise<void> {
    await this.engine.call("forgetAdapter", dir).catch(() => null);
    this.compared.delete(dir);
    await this.listAdapters();
  }

  /** Does what may fail, and tells of a failure that was not asked for. */
  async trying(work: () => Promise<void>, fail: (failure: Failure) => void): Promise<void> {
    try {
      await work();
    } catch (error) {
      const failure = failureOf(error);
      if (failure.kind !== "canceled") fail(failure);
    }
  }

  // Preferences

  prefer(preference: PreferredAnswer): void {
    this.keepPreferences([...this.preferences, preference]);
  }

  forgetPreferences(): void {
    this.keepPreferences([]);
  }

  private keepPreferences(preferences: PreferredAnswer[]): void {
    this.preferences = preferences;
    try {
      sessionStorage.setItem(PREFERENCES, JSON.stringify(preferences));
    } catch {
      // Full, or forbidden: they stay until the page is left.
    }
    this.changed("preferences");
  }

  /** Takes the preferences as the data of the next run, with DPO, from the adapter of the result on. */
  async trainOnPreferences(): Promise<void> {
    const content = new Blob([toJsonl(this.preferences)]);
    const lr = this.model?.source.kind === "demo" ? DEMO_PREFERENCE_LR : PREFERENCE_LR;
    const own = this.run.hasResult ? this.run.id : undefined;
    this.set({ objective: "dpo", lr, ...(own === undefined ? {} : { "init-adapter": runAdapter(own) }) });
    await this.openData({ kind: "file", name: "preferences.jsonl" }, content);
  }

  // The run

  /** Trains the built-in model on the example, as they stand on screen or with the settings that they start with. */
  async trainDemo(): Promise<void> {
    if (this.run.active) return;
    if (this.model?.source.kind !== "demo" || this.data?.source.kind !== "example") {
      this.touched.clear();
      this.settings = { ...this.settings, "data-format": this.defaults["data-format"] };
      await this.openDemo();
      await this.openData({ kind: "example" }, null);
    }
    await this.settled();
    await this.train();
  }

  async train(resume?: string): Promise<void> {
    const { model, data } = this;
    if (model === undefined || data === undefined || this.run.active) return;
    void navigator.storage?.persist?.();
    const steps = this.totalSteps ?? 1;
    this.run.begin(resume);
    this.run.enter("read");
    this.changed("run", "step");
    // A run that goes on keeps to the settings that it began with.
    const settings = resume === undefined ? forRun(this.settings, steps) : this.settings;
    const request = { settings, model: model.source, modelName: model.name, data: data.source };
    let ended = false;
    const calledOff = this.calledOff;
    try {
      await this.reopened();
      if (calledOff !== this.calledOff) throw new EngineError({ kind: "canceled", message: "Canceled." });
      const trained = await this.engine.call("train", resume === undefined ? request : { ...request, resume }, (notice) => {
        if (notice.type === "begun") this.run.id = notice.run;
        if (notice.type === "phase") this.run.enter(notice.phase);
        if (notice.type === "progress") this.run.tell(notice.progress);
        if (notice.type === "unstored") this.run.miss(notice.failure);
        if (notice.type === "run") this.hear(notice.event);
        else this.changed("run");
      });
      this.run.end(trained);
      this.compared.clear();
      this.compared.add(runAdapter(trained.id));
      ended = true;
    } catch (error) {
      const failure = failureOf(error);
      if (failure.kind === "canceled") this.run.callOff();
      else this.run.fail(failure);
    }
    this.changed("run", "step");
    if (ended) this.onFinished();
    if (this.inspection === undefined) this.refresh();
    await this.listSaved();
  }

  private hear(event: RunEvent): void {
    this.run.hear(event);
    if (event.type === "step" && Number.isFinite(this.run.pace)) this.pace = this.run.pace;
    if (event.type === "planned") {
      this.estimate = event;
      this.changed("estimate");
    }
    this.changed(event.type === "step" ? "step" : "run");
    // The first step ends the start.
    if (event.type === "step" && this.run.steps.length === 1) this.changed("run");
  }

  /** Calls off a run that has made no step yet, whatever the engine is at. */
  async cancelStart(): Promise<void> {
    if (this.run.phase !== "starting") return;
    this.calledOff += 1;
    this.engine.cancel();
    await this.reopen();
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
    // A page that is just being left, or another tab, still holds a run: it is listed once it is free.
    clearTimeout(this.relisting);
    if (saved.some((run) => run.busy && run.id !== this.run.id)) this.relisting = setTimeout(() => void this.listSaved(), 2000);
  }

  /** Opens a saved run, and goes on with it where it has not come to its end. */
  async goOn(run: SavedRun): Promise<void> {
    this.savedFailure = undefined;
    try {
      const restored = await this.engine.call("restoreRun", run.id, (notice) => {
        if (notice.type === "progress") this.showModelProgress(notice.progress);
      });
      this.modelProgress = undefined;
      this.settings = restored.run.settings;
      for (const key of Object.keys(this.settings)) this.touched.add(key);
      this.openedModel = restored.model;
      this.openedData = restored.data;
      this.chosen.model = restored.model.source.kind;
      if (restored.model.source.kind === "hub") this.chosen.hub = restored.model.source.address;
      this.chosen.data = restored.data.source.kind;
      this.chosen.textChanged = false;
      this.sources.model = () => this.engine.call("restoreRun", run.id).then(({ model }) => model);
      this.sources.data = () => this.engine.call("restoreRun", run.id).then(({ data }) => data);
      this.modelFailure = undefined;
      this.dataFailure = undefined;
      this.run.restore(restored);
      this.compared.clear();
      this.compared.add(runAdapter(run.id));
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

  /** After the engine died. One that dies at once would be started for ever. */
  private async restart(): Promise<void> {
    this.restarts += 1;
    if (this.restarts <= RESTARTS) await this.reopen();
  }

  /** A new engine knows nothing: it is given the model and the data that were open. */
  private reopen(): Promise<void> {
    this.reopening = this.openAgain();
    return this.reopening;
  }

  /** Waits for the newest of the engines that stand in for others. */
  private async reopened(): Promise<void> {
    let waited: Promise<void>;
    do {
      waited = this.reopening;
      await waited;
    } while (waited !== this.reopening);
  }

  private async openAgain(): Promise<void> {
    const { model, data } = this.sources;
    try {
      await this.engine.call("adapter", null);
      if (model !== undefined) this.openedModel = await model();
      if (data !== undefined) this.openedData = await data();
    } catch (error) {
      const failure = failureOf(error);
      // An engine that was replaced once more has nothing to say.
      if (failure.kind !== "canceled") this.modelFailure = failure;
    }
    this.changed("model", "data", "run");
    this.refresh();
  }
}
