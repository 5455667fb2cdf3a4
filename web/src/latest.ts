/** Work whose result is wanted for the newest state alone: asked for again while it runs, it runs once more after. */
export class Latest {
  private wanted = false;
  private running = false;

  constructor(
    private readonly delayMs: number,
    private readonly work: () => Promise<void>,
  ) {}

  ask(): void {
    this.wanted = true;
    if (!this.running) void this.loop();
  }

  private async loop(): Promise<void> {
    this.running = true;
    while (this.wanted) {
      if (this.delayMs > 0) await new Promise((resume) => setTimeout(resume, this.delayMs));
      this.wanted = false;
      await this.work();
    }
    this.running = false;
  }
}
