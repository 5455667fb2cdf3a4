/** What page and worker say to each other. Each call is one message with a number; the answer carries the same number. */

import type {
  AdapterSummary,
  Answer,
  AnswerSettings,
  Estimate,
  EvaluatedEvent,
  Failure,
  Inspection,
  ModelSummary,
  ModuleUpdate,
  Outcome,
  RunEvent,
  RunSettings,
  StepEvent,
  WeightBlock,
} from "./types";

export interface HubAddress {
  /** Origin, and perhaps a path, of the hub. */
  base: string;
  /** `owner/name`. */
  id: string;
  revision: string;
  /** Path of a GGUF file in the repository; of a split model its first file. */
  file?: string;
}

/** A file of a repository. */
export interface HubFile {
  path: string;
  bytes: number;
}

/** Where a model comes from. */
export type ModelSource =
  | { kind: "demo" }
  | { kind: "hub"; address: HubAddress }
  /** `copy` names the copy in the browser's storage, once there is one. */
  | { kind: "folder"; name: string; copy?: string };

export interface OpenedModel {
  source: ModelSource;
  /** Its directory in the engine, or its GGUF file there. */
  dir: string;
  /** The weights are one GGUF file, or the parts of one. */
  gguf: boolean;
  name: string;
  /** What an adapter of it names as its base: `owner/name` where that is known. */
  base: string;
  summary: ModelSummary;
}

/** Where data come from. `name` is a file name whose ending says what is in it. */
export type DataSource = { kind: "example" } | { kind: "text"; name: string } | { kind: "file"; name: string };

export interface OpenedData {
  source: DataSource;
  /** The file or directory in the engine. */
  path: string;
  bytes: number;
}

export interface FolderFile {
  name: string;
  file: File;
}

/** What fetching a model would cost, known before its weights are asked for. */
export interface HubOffer {
  address: HubAddress;
  /** Of the weights; undefined where the hub names no size. */
  bytes: number | undefined;
  /** Bytes of them that are still to be stored, and bytes that the browser would store for this page; undefined where one is not known. */
  room: { needed: number; granted: number } | undefined;
  parameters: number;
  /** Device memory of a run with these settings, in bytes. */
  memory: number;
}

/** A repository that holds GGUF files and no other model: one of them has to be named. */
export interface HubChoice {
  address: HubAddress;
  files: HubFile[];
}

/** The adapter that runs will use. */
export interface GpuAdapter extends AdapterSummary {
  /** Computes on the processor: a hundred times slower than a GPU. */
  software: boolean;
}

export interface AdapterArchive {
  /** Of the file, without its ending. */
  name: string;
  bytes: Uint8Array<ArrayBuffer>;
}

/** An adapter that was opened from files or from a hub. */
export interface OpenedAdapter {
  /** Its directory in the engine. */
  dir: string;
  title: string;
  /** The base that its configuration names, or "". */
  base: string;
}

export interface PublishRequest {
  run: string;
  model: string;
  /** The name of the base for others. */
  base: string;
  card: string | undefined;
  /** Origin, and perhaps a path, of the hub. */
  hub: string;
  /** `owner/name` of the repository. */
  id: string;
  /** A repository that is made is private. */
  hidden: boolean;
  token: string;
}

/** A stage of the start of a run, in their order. */
export type StartPhase = "read" | "copy" | "prepare" | "load" | "compile" | "evaluate" | "first";

export interface CachedModel {
  address: HubAddress;
  bytes: number;
  whole: boolean;
}

/** A run as the browser's storage has it. */
export interface SavedRun {
  id: string;
  model: ModelSource;
  modelName: string;
  data: DataSource;
  settings: RunSettings;
  started: number;
  step: number;
  steps: number;
  finished: boolean;
  /** Another tab has it open. */
  busy: boolean;
}

export interface RestoredRun {
  run: SavedRun;
  model: OpenedModel;
  data: OpenedData;
  steps: StepEvent[];
  evaluations: EvaluatedEvent[];
}

export interface TrainRequest {
  settings: RunSettings;
  model: ModelSource;
  modelName: string;
  data: DataSource;
  /** The saved run to go on with. */
  resume?: string;
}

export interface Trained {
  id: string;
  outcome: Outcome;
  /** Why the browser's storage does not have the result. */
  unstored?: Failure;
}

/** The memory that training a model takes, by method. */
export interface ModelMemory {
  model: string;
  /** Of full training, LoRA and QLoRA. */
  plans: Estimate[];
}

export interface Calls {
  adapter: { request: null; answer: GpuAdapter | null };
  defaultSettings: { request: null; answer: RunSettings };
  openDemo: { request: null; answer: OpenedModel };
  openFolder: { request: { name: string; files: FolderFile[] }; answer: OpenedModel };
  lookUp: { request: { address: HubAddress; token: string; settings: RunSettings }; answer: HubOffer | HubChoice };
  openHub: { request: { address: HubAddress; token: string }; answer: OpenedModel };
  cancelDownload: { request: null; answer: null };
  cachedModels: { request: null; answer: CachedModel[] };
  forgetModel: { request: HubAddress; answer: null };
  openData: { request: { source: DataSource; content: Blob | string | null }; answer: OpenedData };
  inspect: { request: { settings: RunSettings; count: number }; answer: Inspection };
  /** As `inspect`, of the first part of long data alone; null where that part does not stand by itself. */
  glimpse: { request: { settings: RunSettings; count: number }; answer: Inspection | null };
  estimate: { request: { settings: RunSettings; seqLen: number }; answer: Estimate };
  train: { request: TrainRequest; answer: Trained };
  pause: { request: null; answer: null };
  continue: { request: null; answer: null };
  stop: { request: null; answer: null };
  savedRuns: { request: null; answer: SavedRun[] };
  restoreRun: { request: string; answer: RestoredRun };
  discardRun: { request: string; answer: null };
  /** `card` is README.md where somebody has edited it. */
  adapterZip: { request: { run: string; model: string; base: string; card: string | undefined }; answer: AdapterArchive };
  modelCard: { request: { run: string; model: string; base: string }; answer: string };
  publish: { request: PublishRequest; answer: { address: string } };
  cancelPublish: { request: null; answer: null };
  /** `dir` is where the engine has the base. */
  adapterGguf: { request: { run: string; model: string; dir: string }; answer: AdapterArchive };
  /** For a base that is a GGUF file; the answer's file lies in the browser's storage until the next one is made. */
  mergedGguf: { request: { run: string; model: string; dir: string }; answer: { name: string; file: File } };
  openAdapter: { request: { name: string; files: FolderFile[] }; answer: OpenedAdapter };
  fetchAdapter: { request: { address: HubAddress; token: string }; answer: OpenedAdapter };
  openedAdapters: { request: null; answer: OpenedAdapter[] };
  forgetAdapter: { request: string; answer: null };
  /** `adapters` are the directories of all that the question goes to, and `adapter` is the one that answers; null is the base alone. */
  answer: {
    request: { adapters: string[]; adapter: string | null; settings: RunSettings; prompt: string; generation: AnswerSettings };
    answer: Answer;
  };
  cancelAnswer: { request: null; answer: null };
  /** `model` and `adapter` are directories of the engine; without a matrix it is the first one. */
  lessonBlock: { request: { model: string; matrix: string | undefined; block: number }; answer: WeightBlock };
  lessonUpdate: { request: { model: string; adapter: string; module: number; token: number }; answer: ModuleUpdate };
  lessonMemory: { request: null; answer: ModelMemory[] };
}

export type CallName = keyof Calls;

export interface Progress {
  /** What goes on: a file's name, or a phrase. */
  what: string;
  done: number;
  /** 0 where it is not known. */
  total: number;
  /** The numbers count things; without it they are bytes. */
  counted?: true;
}

/** What a call may tell before its answer. */
export type Notice =
  | { type: "begun"; run: string }
  | { type: "phase"; phase: StartPhase }
  | { type: "progress"; progress: Progress }
  | { type: "run"; event: RunEvent }
  /** A checkpoint that could not be stored; one that is stored later comes as the event `saved`. */
  | { type: "unstored"; failure: Failure }
  | { type: "text"; delta: string };

export interface CallMessage {
  call: number;
  name: CallName;
  request: unknown;
}

export type WorkerMessage = { call: number; answer: unknown } | { call: number; failure: Failure } | { call: number; notice: Notice };
