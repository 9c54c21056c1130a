// What the Node drivers wait by.
export const LIMIT = 50_000;

// Look again and again until there is something.
export async function until(look) {
  const end = Date.now() + LIMIT;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${LIMIT} ms: ${look}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
