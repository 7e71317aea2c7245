// Requests to the server of the page. Every error is an exception with one sentence.

async function checked(response) {
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    /* no JSON */
  }
  throw new Error(message);
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server cannot be reached; is it still running?");
  }
  return checked(response);
}

export const getJson = async (path) => (await request(path)).json();
export const getBlob = async (path) => (await request(path)).blob();

/** A job, and its files by name -> the description of the job that waits now. */
export async function submit(job, files) {
  const form = new FormData();
  form.append("job", JSON.stringify(job));
  for (const [name, file] of Object.entries(files)) form.append(name, file, file.name ?? `${name}.png`);
  return (await request("api/jobs", { method: "POST", body: form })).json();
}

export const cancel = (key) => request(`api/jobs/${key}`, { method: "DELETE" });

/** An image file -> {name, width, height, png, settings}: cropped to whole tiles, and its settings if it is ours. */
export async function readImage(file) {
  const form = new FormData();
  form.append("image", file, file.name ?? "image.png");
  return (await request("api/images", { method: "POST", body: form })).json();
}

/** A label map file -> a PNG in the colors of the page, of the given size. */
export async function readMap(key, file, { width, height }) {
  const form = new FormData();
  form.append("map", file, file.name ?? "map.png");
  return (await request(`api/maps/${key}?width=${width}&height=${height}`, { method: "POST", body: form })).blob();
}

/** Follow a job until it is over: `show` gets each state; the last one is returned. */
export function follow(key, show) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(`api/jobs/${key}/events`);
    let over = false;
    const use = (state) => {
      if (over) return;
      show(state);
      if (["done", "failed", "cancelled"].includes(state.phase)) {
        over = true;
        source.close();
        resolve(state);
      }
    };
    source.onmessage = (event) => use(JSON.parse(event.data));
    source.onerror = async () => {
      if (over || source.readyState !== EventSource.CLOSED) return; // it connects again by itself
      source.close();
      try {
        while (!over) {
          use(await getJson(`api/jobs/${key}`));
          await new Promise((next) => setTimeout(next, 500));
        }
      } catch (error) {
        reject(error);
      }
    };
  });
}

/** The base64 text of a PNG file -> a blob. */
export function pngBlob(text) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}
