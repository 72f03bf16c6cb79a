/** Talk to the API: the token, errors in words, and patience while the server is away. */

const REPEATABLE = new Set(["GET", "PUT", "DELETE"]);
// A POST isn't sent twice by itself: the first may have arrived although its answer did not.
const LONGEST_WAIT_S = 15;

export class ApiError extends Error {
  constructor(status, code, message, detail = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.detail = detail;
  }
}

/** Wait, or end at once when `signal` says so. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}

/** One server, one token. `askForToken(reason)` resolves with a token that a person typed. */
export class Api {
  #token = "";
  #asking = null;
  #hooks;

  constructor(hooks) {
    this.#hooks = hooks; // {askForToken, onAway(text), onBack()}
  }

  set token(text) {
    this.#token = text;
  }

  get(path, { query, signal } = {}) {
    return this.#request("GET", path, { query, signal });
  }

  post(path, json) {
    return this.#request("POST", path, { json });
  }

  put(path, json) {
    return this.#request("PUT", path, { json });
  }

  delete(path) {
    return this.#request("DELETE", path, {});
  }

  async #request(method, path, { query, json, signal }) {
    for (let tries = 0; ; tries += 1) {
      const used = this.#token;
      const response = await this.#send(method, path, { query, json, signal });
      if (response?.ok) {
        this.#hooks.onBack();
        return response.status === 204 ? null : response.json();
      }
      // The answer to the first try may have been lost after the server had done its work.
      if (tries && method === "DELETE" && response?.status === 404) return null;
      const error = response ? await errorOf(response) : offline();
      if (error.status === 401) await this.#newToken(used, error.message);
      else if (isAway(error) && REPEATABLE.has(method)) await this.#wait(error, response, tries, signal);
      else throw error;
    }
  }

  /** Return the response, or null where no server could be reached. */
  async #send(method, path, { query, json, signal }) {
    const address = addressOf(path, query);
    const headers = this.#token ? { Authorization: `Bearer ${this.#token}` } : {};
    if (json !== undefined) headers["Content-Type"] = "application/json";
    const body = json === undefined ? undefined : JSON.stringify(json);
    try {
      return await fetch(address, { method, headers, body, signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return null;
    }
  }

  async #wait(error, response, tries, signal) {
    const asked = Number(response?.headers.get("Retry-After")) || 2 ** tries;
    const seconds = Math.min(Math.max(asked, 1), LONGEST_WAIT_S);
    this.#hooks.onAway(`${error.message} Trying again in ${seconds} s; nothing is lost.`);
    await pause(seconds, signal);
  }

  /** Ask once, whatever number of requests was refused with the same token. */
  async #newToken(used, reason) {
    if (used !== this.#token) return;
    this.#asking ??= this.#hooks.askForToken(used ? reason : "");
    this.#token = await this.#asking;
    this.#asking = null;
  }

  /** Send a form with files. XMLHttpRequest, for fetch doesn't tell how much has been sent. */
  upload(path, form, { onProgress, signal }) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", addressOf(path));
      request.setRequestHeader("Authorization", `Bearer ${this.#token}`);
      request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
      request.onerror = () => reject(offline());
      request.onabort = () => reject(new DOMException("aborted", "AbortError"));
      request.onload = () => {
        const body = parsed(request.responseText);
        if (request.status < 300) resolve(body);
        else reject(fromBody(request.status, body));
      };
      signal.addEventListener("abort", () => request.abort());
      request.send(form);
    });
  }
}

/** Relative to the page, so that a path in front of it stays in front. */
function addressOf(path, query = {}) {
  const address = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null) address.searchParams.set(name, value);
  }
  address.hash = "";
  return address;
}

function offline() {
  return new ApiError(0, "offline", "The server can't be reached. Check that it runs and that this computer is online.");
}

function isAway(error) {
  return error.status === 0 || error.status === 503 || error.status === 429;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function errorOf(response) {
  return fromBody(response.status, parsed(await response.text().catch(() => "")));
}

function fromBody(status, body) {
  if (body?.message) return new ApiError(status, body.code, body.message, body.detail ?? {});
  const known = {
    401: "The server doesn't know this access token.",
    413: "The server takes no body of this size.",
    503: "The server is busy or its store is away.",
  };
  return new ApiError(status, "no_words", known[status] ?? `The server answered ${status} without saying why.`);
}
