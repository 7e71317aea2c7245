// What this browser keeps: images and settings, in IndexedDB; in memory where a browser has none.

const MOST = 500; // images; the oldest are deleted beyond
let database = null;
const memory = { images: new Map(), values: new Map(), next: 1 };

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Open the database. */
export async function openStorage() {
  try {
    const request = indexedDB.open("smalti", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("images", { keyPath: "id", autoIncrement: true });
      request.result.createObjectStore("values");
    };
    database = await done(request);
  } catch {
    database = null;
  }
}

const store = (name, mode = "readonly") => database.transaction(name, mode).objectStore(name);

/** Add an image {blob, name, caption, ...} -> its id. */
export async function addImage(image) {
  if (!database) {
    memory.images.set(memory.next, { ...image, id: memory.next });
    return memory.next++;
  }
  const id = await done(store("images", "readwrite").add(image));
  const keys = await done(store("images").getAllKeys());
  for (const old of keys.slice(0, Math.max(keys.length - MOST, 0))) await deleteImage(old);
  return id;
}

/** All images, the oldest first. */
export const allImages = async () => (database ? done(store("images").getAll()) : [...memory.images.values()]);

export async function deleteImage(id) {
  if (database) await done(store("images", "readwrite").delete(id));
  else memory.images.delete(id);
}

export async function deleteAllImages() {
  if (database) await done(store("images", "readwrite").clear());
  else memory.images.clear();
}

export const getValue = async (key) => (database ? done(store("values").get(key)) : memory.values.get(key));

export async function setValue(key, value) {
  if (database) await done(store("values", "readwrite").put(value, key));
  else memory.values.set(key, value);
}
