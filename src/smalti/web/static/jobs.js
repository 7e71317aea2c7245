// The job of this page: it is submitted, followed with its progress, and cancelled. A reload goes on with it.
import * as api from "./api.js";
import { announce, byId, duration, isEnabled, setEnabled, showStatus } from "./dom.js";

const KEPT = "job"; // the key of the running job in the storage of this tab

export class JobRunner {
  /** `show` is called when there are new previews. */
  constructor(show) {
    Object.assign(this, { show, current: null });
  }

  get isBusy() {
    return this.current !== null;
  }

  /** Submit a job {task, ...} for images of a size, requested in a mode -> how it ended; see `follow`. */
  async run(job, files, { size, mode }) {
    if (this.isBusy) throw new Error("one job is running; wait for it, or cancel it");
    const kept = { job, mode, size: { width: size.width, height: size.height } };
    return this.during(kept, async () => {
      const { job: key } = await api.submit(job, files);
      this.current.key = key;
      sessionStorage.setItem(KEPT, JSON.stringify({ ...kept, key }));
      if (this.current.isCancelled) await api.cancel(key);
      return this.follow();
    });
  }

  /** Go on with the job that ran when the page was reloaded -> how it ended, null if there is none. */
  async resume() {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    if (!kept) return null;
    try {
      return await this.during(kept, () => this.follow());
    } catch {
      showStatus("");
      return null; // the server has forgotten it
    }
  }

  async during(job, act) {
    this.current = { ...job };
    this.setBusy(true);
    try {
      return await act();
    } finally {
      sessionStorage.removeItem(KEPT);
      this.current = null;
      this.setBusy(false);
    }
  }

  /** -> {job, mode, size, state, images}: `images` with their files as blobs; null if it was cancelled. */
  async follow() {
    const { current } = this,
      state = await api.follow(current.key, (now) => this.onState(now));
    if (state.phase === "failed") throw new Error(state.error);
    if (state.phase === "cancelled") return null;
    const images = [];
    for (const one of state.images) images.push({ ...one, blob: await api.getBlob(one.url) });
    return { ...current, state, images };
  }

  async cancel() {
    if (!isEnabled(byId("cancel")) || !this.isBusy) return;
    this.current.isCancelled = true;
    showStatus("Cancelling …");
    if (this.current.key) await api.cancel(this.current.key);
  }

  setBusy(busy) {
    setEnabled(byId("generate"), !busy);
    setEnabled(byId("cancel"), busy);
    document.body.classList.toggle("busy", busy);
    if (busy) showStatus("Sending …");
    else this.showShare(0);
  }

  onState(state) {
    const { current } = this;
    current.state = state;
    if (current.isCancelled) return;
    if (state.phase === "waiting") {
      const place = state.position > 1 ? `number ${state.position} in the queue` : "next in the queue";
      const text = `Waiting: ${place}${state.wait ? `, about ${duration(state.wait)} until it begins` : ""}`;
      if (state.position !== current.position) announce(text);
      current.position = state.position;
      showStatus(text);
    } else if (state.phase === "running") {
      const share = state.share ?? 0;
      this.showShare(share);
      showStatus(
        `${Math.round(share * 100)} %${state.seconds_left ? `, about ${duration(state.seconds_left)} left` : ""}`,
      );
      this.show();
    }
  }

  showShare(share) {
    byId("progress").firstElementChild.style.width = `${share * 100}%`;
    byId("progress").setAttribute("aria-valuenow", String(Math.round(share * 100)));
  }
}
