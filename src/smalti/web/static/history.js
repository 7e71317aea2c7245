// Undo and redo of a painted canvas, also over changes of its size. A state is {numbers, width, height}.
import { UNPAINTED } from "./label_map.js";

const MOST_BYTES = 2 ** 26;

/** A state at another size: scaled, or with `moved` {x, y} shifted at its own scale -> its numbers. */
export function resized(state, { width, height, moved }) {
  const numbers = new Int16Array(width * height).fill(UNPAINTED);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const fromX = moved ? x - moved.x : Math.floor(((x + 0.5) * state.width) / width);
      const fromY = moved ? y - moved.y : Math.floor(((y + 0.5) * state.height) / height);
      if (fromX >= 0 && fromX < state.width && fromY >= 0 && fromY < state.height) {
        numbers[y * width + x] = state.numbers[fromY * state.width + fromX];
      }
    }
  }
  return numbers;
}

export class History {
  constructor() {
    this.clear();
  }

  clear() {
    [this.past, this.future] = [[], []];
  }

  get canUndo() {
    return this.past.length > 0;
  }

  get canRedo() {
    return this.future.length > 0;
  }

  /** Keep a state that is about to change. */
  remember(state) {
    this.past.push(kept(state));
    this.future = [];
    while (this.past.length > 1 && this.past.length * state.numbers.byteLength > MOST_BYTES) this.past.shift();
  }

  /** The canvas has another size: kept states are resized when they come back. */
  resize({ width, height, moved }) {
    for (const { sizes } of [...this.past, ...this.future]) {
      const last = sizes[sizes.length - 1];
      if (!last || Boolean(last.moved) !== Boolean(moved)) sizes.push({ width, height, moved });
      else {
        const sum = moved ? { x: last.moved.x + moved.x, y: last.moved.y + moved.y } : null;
        sizes[sizes.length - 1] = { width, height, moved: sum };
      }
    }
  }

  /** The state before, or null; `redo` brings the current one back. */
  undo(current) {
    return this.exchange(this.past, this.future, current);
  }

  redo(current) {
    return this.exchange(this.future, this.past, current);
  }

  exchange(from, to, current) {
    if (!from.length) return null;
    to.push(kept(current));
    const { state, sizes } = from.pop();
    return sizes.reduce((before, size) => ({ ...size, numbers: resized(before, size) }), state);
  }
}

const kept = ({ numbers, width, height }) => ({ state: { numbers: numbers.slice(), width, height }, sizes: [] });
