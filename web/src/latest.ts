/** Work whose result is wanted for the newest state alone: asked for again while it runs, it runs once more after. */
export class Latest {
  private wanted = false;
  private running: Promise<void> | undefined;

  constructor(
    private readonly delayMs: number,
    private readonly work: () => Promise<void>,
  ) {}

  ask(): void {
    this.wanted = true;
    this.running ??= this.loop().finally(() => {
      this.running = undefined;
    });
  }

  /** Resolves when nothing is left to do. */
  async settled(): Promise<void> {
    while (this.running !== undefined) await this.running;
  }

  private async loop(): Promise<void> {
    while (this.wanted) {
      if (this.delayMs > 0) await new Promise((resume) => setTimeout(resume, this.delayMs));
      this.wanted = false;
      await this.work();
    }
  }
}
